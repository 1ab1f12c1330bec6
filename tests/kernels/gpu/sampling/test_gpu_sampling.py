"""Draws in Triton against what they mean on a CPU: the same tokens kept, the same token drawn."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, product

import pytest
import torch
from torch import Tensor

from kernels.counter_random import uniform
from kernels.cut import Cuts, cut
from kernels.gpu.sampling.sample import SamplingScratch, sample
from kernels.gpu.sampling.weights import SamplingRows
from kernels.sample import draw

SIZES = pytest.mark.parametrize("size", (257, 4500), ids="V{}".format)
MOST_SEED = 2**63 - 1


def columns(device: torch.device, *wishes: dict[str, float]) -> SamplingRows:
    """A row for each of `wishes`, at temperature 1 and with a seed and a position of its own."""
    rows = SamplingRows.empty(len(wishes), device)
    rows.temperature.fill_(1.0)
    rows.seed.copy_(torch.randint(-MOST_SEED, MOST_SEED, rows.seed.shape))
    rows.position.copy_(torch.arange(len(wishes)) * 999)
    for row, wish in enumerate(wishes):
        for name, value in wish.items():
            getattr(rows, name)[row] = value
    return rows


def every_combination(size: int) -> list[dict[str, float]]:
    cuts = product((0, max(size // 20, 2)), (1.0, 0.8), (0.0, 0.03))
    return [
        {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
        for (top_k, top_p, min_p), temperature in zip(cuts, cycle((1.0, 1.7, 0.6)), strict=False)
    ]


def sampled(
    logits: Tensor, rows: SamplingRows, capacity: int = 1 << 14
) -> tuple[Tensor, SamplingScratch]:  # of scratch and outputs that held something else before
    scratch = SamplingScratch.of(*logits.shape, logits.device)
    scratch = replace(scratch, gathered=scratch.gathered[:, :capacity].contiguous())
    for each in (scratch.pairs, scratch.masses, scratch.tallies, scratch.gathered, scratch.least_keys):
        each.fill_(-77)
    out = torch.full((len(logits),), -9, device=logits.device)
    sample(logits, rows, scratch, out)
    return out.cpu(), scratch


def meant(logits: Tensor, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """The tokens, and by how much the least likely that is kept is less likely than the most likely."""
    logits = logits.cpu()
    temperature, min_p, top_k, top_p, seed, position = (
        getattr(rows, name).cpu() for name in ("temperature", "min_p", "top_k", "top_p", "seed", "position")
    )
    probabilities = torch.softmax(logits / temperature[:, None], -1)
    most = probabilities.amax(-1)
    cuts = Cuts(min_p[:, None], top_k[:, None].long(), int(top_k.max()), top_p[:, None])
    cut(probabilities, cuts)
    least = probabilities.masked_fill(probabilities == 0, 2.0).amin(-1) / most
    drawn = draw(probabilities, uniform(seed, position))
    return torch.where(temperature == 0, logits.argmax(-1), drawn), least


def least_weights(scratch: SamplingScratch) -> Tensor:
    return scratch.least_keys.view(torch.float32).cpu()


@SIZES
def test_every_combination_of_cuts_keeps_and_draws_what_it_does_on_a_cpu(
    size: int, device: torch.device
) -> None:
    wishes = every_combination(size)
    logits = (torch.randn(len(wishes), size) * 3).to(device)
    rows = columns(device, *wishes)
    tokens, scratch = sampled(logits, rows)
    expected, least = meant(logits, rows)
    assert torch.equal(tokens, expected)
    # A search ends on the last token that is kept; where it has nothing to cut off, min-p alone bounds what is drawn.
    possible = least_weights(scratch) > 1e-12
    assert possible.sum() >= 4, "rows with top-p at least"
    torch.testing.assert_close(least_weights(scratch)[possible], least[possible], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("capacity", (1 << 14, 2), ids=("gathered", "read again"))
@pytest.mark.parametrize("decimals", (0, 9), ids=("many ties", "all equal"))
def test_tokens_as_likely_as_the_last_one_kept_are_kept(
    decimals: int, capacity: int, device: torch.device
) -> None:
    logits = torch.randn(4, 1000).round_() if decimals == 0 else torch.full((4, 1000), 3.7)
    rows = columns(device, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 200, "top_p": 0.9}, {"top_p": 1e-9})
    tokens, scratch = sampled(logits.to(device), rows, capacity)
    expected, least = meant(logits, rows)
    torch.testing.assert_close(least_weights(scratch), least, rtol=1e-5, atol=0.0)
    assert torch.equal(tokens, expected)


def test_what_does_not_fit_is_searched_in_the_row_with_the_same_result(device: torch.device) -> None:
    logits = torch.randn(2, 1500).to(device)
    rows = columns(device, {"top_p": 0.7}, {"top_k": 700, "top_p": 0.6, "min_p": 0.01})
    tokens, scratch = sampled(logits, rows)
    tokens_again, scratch_again = sampled(logits, rows, capacity=8)
    assert torch.equal(scratch.least_keys, scratch_again.least_keys)
    assert torch.equal(tokens, tokens_again)


def test_a_token_on_the_bound_of_a_round_is_counted(device: torch.device) -> None:
    """Of two that top-k leaves, with the masses 1 and 0.63, top-p keeps both: one row at least meets the bound."""
    bound = torch.tensor((127 << 23) + 1 - (42 << 23) // 64, dtype=torch.int32).view(torch.float32)
    logits = torch.full((7, 300), -3.0)
    logits[:, 0] = 0.0
    logits[:, 200] = bound.log() + torch.arange(-3, 4) * 2.0**-25
    rows = columns(device, *[{"top_k": 2, "top_p": 0.9}] * 7)
    _, scratch = sampled(logits.to(device), rows)
    torch.testing.assert_close(least_weights(scratch), bound.expand(7), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("top_k", (1, 999, 1000, 5000))
def test_top_k_of_one_or_of_all(top_k: int, device: torch.device) -> None:
    logits = torch.randn(1, 1000).to(device)
    rows = columns(device, {"top_k": top_k})
    tokens, scratch = sampled(logits, rows)
    expected, least = meant(logits, rows)
    assert torch.equal(tokens, expected)
    if top_k < 1000:
        torch.testing.assert_close(least_weights(scratch), least, rtol=1e-5, atol=0.0)


def test_a_draw_uses_the_numbers_that_it_would_on_a_cpu(device: torch.device) -> None:
    """Of 1000 tokens alike, the one that is drawn tells the number's first digits."""
    rows = columns(device, *[{}] * 30)
    rows.seed[:3] = torch.tensor([0, MOST_SEED, -MOST_SEED - 1])
    rows.position[:3] = torch.tensor([0, 2**31, 7])
    tokens, _ = sampled(torch.zeros(30, 1000, device=device), rows)
    numbers = uniform(rows.seed.cpu(), rows.position.cpu())
    assert tokens.tolist() == (numbers * 1000).floor().int().tolist()


def test_many_seeds_draw_what_they_do_on_a_cpu(device: torch.device) -> None:
    """Also at the far end of a vocabulary, and tokens that are hardly possible."""
    logits = (torch.randn(1, 4500) * 4).expand(40, -1).contiguous().to(device, torch.bfloat16)
    rows = columns(device, *[{"temperature": 1.3}] * 40)
    tokens, _ = sampled(logits, rows)
    assert torch.equal(tokens, meant(logits.float(), rows)[0])
    assert len(set(tokens.tolist())) > 12


def test_a_row_depends_on_nothing_beside_it(device: torch.device) -> None:
    size = 4500
    wishes = [{"top_k": 40, "top_p": 0.9}, {"temperature": 0.0}, {"top_p": 0.6, "min_p": 0.001}, {}]
    logits = (torch.randn(4, size) * 2).to(device)
    rows = columns(device, *wishes)
    together, scratch = sampled(logits, rows)
    order = torch.tensor([2, 0, 3, 1], device=device)
    names = ("temperature", "min_p", "top_k", "top_p", "seed", "position")
    moved = SamplingRows(**{name: getattr(rows, name)[order] for name in names})
    moved_tokens, moved_scratch = sampled(logits[order], moved)
    alone, alone_scratch = sampled(logits[:1], rows)
    assert torch.equal(moved_tokens, together[order.cpu()])
    assert torch.equal(moved_scratch.least_keys, scratch.least_keys[order])
    assert torch.equal(alone, together[:1])
    assert torch.equal(alone_scratch.masses, scratch.masses[:1]), "to the last bit of its sums"


def test_greedy_rows_take_the_most_likely_token_whatever_else_they_hold(device: torch.device) -> None:
    logits = torch.randn(2, 257).to(device)
    rows = columns(device, {"temperature": 0.0, "top_k": 3, "top_p": 0.1}, {"temperature": 0.0, "min_p": 1.0})
    assert torch.equal(sampled(logits, rows)[0], logits.argmax(-1).cpu())


def test_tokens_that_are_forbidden_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((10, 300), -torch.inf, device=device)
    logits[:, [3, 299]] = torch.tensor([0.0, 1.0], device=device)
    rows = columns(device, *[{"top_k": 100}, {"top_p": 0.999}, {}, {}, {}] * 2)
    assert set(sampled(logits, rows)[0].tolist()) <= {3, 299}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of inf - inf
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_a_row_that_is_no_distribution_gets_a_token_of_the_vocabulary(
    value: float, device: torch.device
) -> None:
    logits = torch.randn(3, 257).to(device)
    logits[:, 100] = value
    if value == -torch.inf:
        logits.fill_(value)
    tokens, _ = sampled(logits, columns(device, {}, {"top_k": 4}, {"top_p": 0.5}))
    assert ((tokens >= 0) & (tokens < 257)).all()


def test_logits_may_be_columns_of_a_wider_matrix_and_tokens_int32(device: torch.device) -> None:
    out = torch.full((2,), -9, dtype=torch.int32, device=device)
    logits = torch.randn(2, 64, device=device)[:, :50]
    rows = columns(device, {"temperature": 0.0}, {"top_k": 1})
    sample(logits, rows, SamplingScratch.of(5, 50, device), out)
    assert torch.equal(out, logits.argmax(-1).int())


def test_columns_of_another_dtype_are_refused(device: torch.device) -> None:
    rows = SamplingRows.empty(1, device)
    wrong = SamplingRows(
        rows.temperature.half(), rows.min_p, rows.top_k, rows.top_p, rows.seed, rows.position
    )
    with pytest.raises(AssertionError, match="temperature"):
        sample(
            torch.zeros(1, 9, device=device), wrong, SamplingScratch.of(1, 9, device), torch.zeros(1).long()
        )
