"""Log-probabilities in Triton against log_softmax, a sort and a count; and what they mean against the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kernels import log_probabilities as meant
from kernels.gpu.sampling.log_probabilities import ScoringScratch, log_probabilities
from kernels.log_probabilities import BEST, BEST_IDS, LOGPROB, MOST_BEST, NUM_SCORES, RANK

AssertClose = Callable[[Tensor, Tensor], None]
UNTOUCHED = -9


class Scores(NamedTuple):
    own: Tensor  # [rows] fp32
    ranks: Tensor  # [rows] int32
    best: Tensor  # [rows, MOST_BEST] fp32
    best_ids: Tensor  # [rows, MOST_BEST] int32


def unpacked(out: Tensor) -> Scores:
    fractions = out.view(torch.float32)
    return Scores(
        fractions[:, LOGPROB], out[:, RANK], fractions[:, BEST:BEST_IDS], out[:, BEST_IDS:NUM_SCORES]
    )


def scored(logits: Tensor, token_ids: Tensor, num_best: list[int]) -> Scores:
    """In buffers that held something else before."""
    scratch = ScoringScratch.of(len(logits) + 1, logits.shape[1], logits.device)
    scratch.sums.fill_(torch.nan)
    for poisoned in (scratch.pairs, scratch.num_better):
        poisoned.fill_(UNTOUCHED)
    out = torch.full((len(logits), NUM_SCORES), UNTOUCHED, dtype=torch.int32, device=logits.device)
    wanted = torch.tensor(num_best, dtype=torch.int32, device=logits.device)
    log_probabilities(logits, token_ids, wanted, scratch, out)
    return unpacked(out)


def meaning(logits: Tensor, token_ids: Tensor, num_best: list[int]) -> Scores:
    out = torch.full((len(logits), NUM_SCORES), UNTOUCHED, dtype=torch.int32)
    meant.log_probabilities(logits.cpu(), token_ids.cpu(), torch.tensor(num_best), out)
    return unpacked(out.to(logits.device))


@pytest.mark.parametrize("score", (scored, meaning), ids=("kernel", "meaning"))
@pytest.mark.parametrize("size", (MOST_BEST, 257, 1000, 9001), ids="V{}".format)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_equal_what_a_sort_and_a_count_find(
    dtype: torch.dtype,
    size: int,
    score: Callable[..., Scores],
    device: torch.device,
    assert_close: AssertClose,
) -> None:
    logits = torch.randn(3, size).mul_(8).round_().div_(4).to(device, dtype)  # many ties
    token_ids = torch.tensor([0, size // 2, size - 1], device=device)
    found = score(logits, token_ids, [0, MOST_BEST, 7])
    logprobs = logits.float().log_softmax(-1)
    own = logits.gather(1, token_ids[:, None])
    assert_close(found.own, logprobs.gather(1, token_ids[:, None]).squeeze(-1))
    assert found.ranks.tolist() == ((logits > own).sum(-1) + 1).tolist()
    best = torch.sort(logits, stable=True, descending=True)
    for row, count in ((1, MOST_BEST), (2, 7)):
        assert torch.equal(found.best_ids[row, :count], best.indices[row, :count].int())
        assert_close(found.best[row, :count], logprobs[row, best.indices[row, :count]])


@pytest.mark.parametrize("score", (scored, meaning), ids=("kernel", "meaning"))
def test_what_no_row_asked_for_is_not_written(score: Callable[..., Scores], device: torch.device) -> None:
    found = score(torch.randn(3, 300, device=device), torch.tensor([5, 6, 7], device=device), [-1, 0, 2])
    assert (found.own.view(torch.int32) == UNTOUCHED).tolist() == [True, False, False]
    assert (found.ranks == UNTOUCHED).tolist() == [True, False, False]
    for each in (found.best.view(torch.int32), found.best_ids):
        assert (each == UNTOUCHED).sum(-1).tolist() == [MOST_BEST, MOST_BEST, MOST_BEST - 2]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of inf - inf
def test_forbidden_tokens_have_no_chance_and_spoil_nothing(
    device: torch.device, assert_close: AssertClose
) -> None:
    """Also where a whole split is forbidden."""
    logits = torch.full((1, 9000), -torch.inf, device=device)
    logits[0, [8, 8999]] = torch.tensor([1.0, 3.0], device=device)
    found = scored(logits, torch.tensor([5000], device=device), [3])
    assert found.own[0] == -torch.inf and found.ranks[0] == 3
    assert found.best_ids[0, :3].tolist() == [8999, 8, 0]
    assert_close(found.best[0, :2].exp(), torch.tensor([3.0, 1.0], device=device).softmax(-1))


def test_a_row_depends_on_nothing_beside_it(device: torch.device) -> None:
    logits, token_ids = torch.randn(3, 5000, device=device), torch.tensor([1, 2, 3], device=device)
    together = scored(logits, token_ids, [5, 20, 0])
    alone = scored(logits[1:2], token_ids[1:2], [20])
    assert all(torch.equal(each[:1], other[1:2]) for each, other in zip(alone, together, strict=True))
