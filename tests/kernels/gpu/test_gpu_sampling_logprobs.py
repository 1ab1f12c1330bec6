"""Log-probabilities in Triton against log_softmax, a sort and a count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.gpu.log_probabilities import MOST_BEST, LogProbabilities, log_probabilities

AssertClose = Callable[[Tensor, Tensor], None]


def scored(logits: Tensor, token_ids: Tensor, num_best: list[int]) -> LogProbabilities:
    """In buffers that held something else before."""
    found = LogProbabilities.of(len(logits) + 1, logits.shape[1], logits.device)
    for poisoned in (found.own, found.best, found.sums):
        poisoned.fill_(torch.nan)
    for poisoned in (found.ranks, found.best_ids, found.pairs, found.num_better):
        poisoned.fill_(-9)
    log_probabilities(
        logits, token_ids, torch.tensor(num_best, dtype=torch.int32, device=logits.device), found
    )
    return found


@pytest.mark.parametrize("size", (MOST_BEST, 257, 1000, 9001), ids="V{}".format)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_equal_what_a_sort_and_a_count_find(
    dtype: torch.dtype, size: int, device: torch.device, assert_close: AssertClose
) -> None:
    logits = torch.randn(3, size).mul_(8).round_().div_(4).to(device, dtype)  # many ties
    token_ids = torch.tensor([0, size // 2, size - 1], device=device)
    found = scored(logits, token_ids, [0, MOST_BEST, 7])
    logprobs = logits.float().log_softmax(-1)
    own = logits.gather(1, token_ids[:, None])
    assert_close(found.own[:3], logprobs.gather(1, token_ids[:, None]).squeeze(-1))
    assert found.ranks[:3].tolist() == ((logits > own).sum(-1) + 1).tolist()
    best = torch.sort(logits, stable=True, descending=True)
    for row, count in ((1, MOST_BEST), (2, 7)):
        assert torch.equal(found.best_ids[row, :count], best.indices[row, :count])
        assert_close(found.best[row, :count], logprobs[row, best.indices[row, :count]])


def test_what_no_row_asked_for_is_not_written(device: torch.device) -> None:
    found = scored(torch.randn(3, 300, device=device), torch.tensor([5, 6, 7], device=device), [-1, 0, 2])
    assert found.own.isnan().tolist() == [True, False, False, True]
    assert (found.ranks == -9).tolist() == [True, False, False, True]
    assert (found.best_ids == -9).sum(-1).tolist() == [MOST_BEST, MOST_BEST, MOST_BEST - 2, MOST_BEST]


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
    assert torch.equal(alone.own[:1], together.own[1:2])
    assert torch.equal(alone.best[:1], together.best[1:2])
