"""The most likely token in Triton: of a row, and of the slices of a vocabulary that ranks hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.gpu.sampling.argmax import best_pairs, best_tokens, num_splits, split_pairs

SIZES = pytest.mark.parametrize("size", (1, 7, 257, 4097, 9001), ids="V{}".format)


def found(logits: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    rows, size = logits.shape
    pairs = torch.full((rows + 1, num_splits(size)), -9, device=logits.device)
    out = torch.full((rows,), -9, dtype=dtype, device=logits.device)
    best_tokens(split_pairs(logits, pairs), out)
    assert (pairs[rows] == -9).all(), "scratch of rows that are not there is not written"
    return out


@SIZES
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_the_first_of_the_largest_is_found(size: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.randn(3, size).mul_(2).round_().div_(2)  # many ties
    first = [row.index(max(row)) for row in logits.tolist()]
    assert found(logits.to(device, dtype)).tolist() == first


@pytest.mark.parametrize("value", (0.0, -torch.inf, torch.nan))
def test_of_equal_logits_the_first_token_is_taken(value: float, device: torch.device) -> None:
    assert found(torch.full((2, 5000), value, device=device)).tolist() == [0, 0]


def test_a_zero_with_a_minus_is_a_zero(device: torch.device) -> None:
    assert found(torch.tensor([[-1.0, -0.0, 0.0]], device=device), torch.int32).tolist() == [1]


@pytest.mark.parametrize("sign", (1.0, -1.0))
def test_what_is_not_a_number_is_found_like_torch_does(sign: float, device: torch.device) -> None:
    logits = torch.randn(2, 5000)
    logits[1, 4500] = torch.tensor(torch.nan).copysign(torch.tensor(sign))
    assert torch.equal(found(logits.to(device)).cpu(), logits.argmax(-1))


def test_logits_may_be_columns_of_a_wider_matrix(device: torch.device) -> None:
    wide = torch.randn(3, 300, device=device)
    assert torch.equal(found(wide[:, :257]), wide[:, :257].argmax(-1))


def test_ranks_that_hold_slices_find_what_one_that_holds_all_finds(device: torch.device) -> None:
    logits = torch.randn(4, 10_000).mul_(2).round_().to(device)
    logits[2] = -torch.inf
    pairs = torch.full((3, 4), -9, device=device)  # [ranks, rows], as ranks gather them
    for rank, (begin, end) in enumerate(((0, 4000), (4000, 9000), (9000, 10_000))):
        part = logits[:, begin:end]
        scratch = torch.empty(4, num_splits(end - begin), dtype=torch.int64, device=device)
        best_pairs(split_pairs(part, scratch, begin), pairs[rank])
    out = torch.full((4,), -9, device=device)
    best_tokens(pairs.t(), out)
    assert torch.equal(out, found(logits))
