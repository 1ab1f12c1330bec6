"""What sampling is made of, each against its plain meaning. Odd sizes first."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from kernels.argmax import argmax
from kernels.cut import Cuts, cut
from kernels.fixed_point import chunk_masses, fixed
from kernels.largest import largest, largest_with_places
from kernels.penalize import penalize_counts, penalize_repetition
from kernels.sample import draw

SIZES = pytest.mark.parametrize("size", (1, 7, 255, 257, 1009, 4096, 50257), ids="V{}".format)
ROWS = pytest.mark.parametrize("num_rows", (1, 3, 17), ids="R{}".format)


def column(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def after_cut(probabilities: Tensor, cuts: Cuts) -> Tensor:
    probabilities = probabilities.clone()
    cut(probabilities, cuts)
    return probabilities


@SIZES
@ROWS
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_argmax_takes_the_first_of_the_largest(num_rows: int, size: int, dtype: torch.dtype) -> None:
    logits = torch.randn(num_rows, size).to(dtype)  # in bf16 many are equal
    first = [row.index(max(row)) for row in logits.tolist()]
    assert argmax(logits).tolist() == first


def test_argmax_of_equal_logits_is_the_first_token() -> None:
    assert argmax(torch.zeros(2, 1000)).tolist() == [0, 0]
    assert argmax(torch.full((1, 1000), -torch.inf)).tolist() == [0]


def test_argmax_finds_what_is_not_a_number_like_torch_does() -> None:
    logits = torch.randn(2, 1000)
    logits[1, 700] = torch.nan
    assert torch.equal(argmax(logits), logits.argmax(-1))


@SIZES
@ROWS
@pytest.mark.parametrize("count", (0, 1, 5, 64, 700), ids="K{}".format)
def test_the_largest_come_in_descending_order(num_rows: int, size: int, count: int) -> None:
    values = torch.randn(num_rows, size).mul_(4).round_().div_(4)  # many ties
    expected = torch.sort(values, stable=True, dim=-1, descending=True)
    found, places = largest_with_places(values, count)
    assert torch.equal(largest(values, count), expected.values[:, :count])
    assert torch.equal(found, expected.values[:, :count])
    assert torch.equal(places, expected.indices[:, :count]), "of equal numbers, the first ones"


def test_sums_in_fixed_point_do_not_depend_on_the_order() -> None:
    probabilities = torch.randn(50_000).double().mul(4).softmax(-1).float()
    numbers = fixed(probabilities)
    total = float(numbers.sum())
    assert all(float(numbers[torch.randperm(len(numbers))].cumsum(0)[-1]) == total for _ in range(10))
    assert total / 2**50 == pytest.approx(1.0, abs=1e-6)


@SIZES
def test_every_token_counts_in_one_chunk(size: int) -> None:
    probabilities = torch.randn(3, size).softmax(-1)
    expected = torch.stack([part.double().sum(-1) for part in torch.split(probabilities, 256, 1)], 1)
    torch.testing.assert_close(chunk_masses(probabilities) / 2**50, expected, rtol=1e-6, atol=0.0)


@SIZES
def test_top_k_keeps_k_tokens_and_ties(size: int) -> None:
    probabilities = torch.randn(3, size).softmax(-1)
    probabilities[2] = 1 / size
    kept = after_cut(probabilities, Cuts(top_k=column(1, 40, 5, dtype=torch.int64), widest_top_k=40)) > 0
    assert kept.sum(-1).tolist() == [1, min(40, size), size]
    assert (probabilities[1][kept[1]].min() >= probabilities[1].masked_fill(kept[1], 0).max()).item()


@SIZES
@pytest.mark.parametrize("temperature", (0.3, 1.0, 30.0), ids="T{}".format)
def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass(size: int, temperature: float) -> None:
    """A peaked nucleus is found among the first candidates, a flat one takes the whole vocabulary."""
    probabilities = (torch.randn(4, size) * 3 / temperature).softmax(-1)
    wanted = column(1e-9, 0.1, 0.5, 0.95, dtype=torch.float64)
    kept = after_cut(probabilities, Cuts(top_p=wanted))
    for row, goal in enumerate(wanted.flatten().tolist()):
        least = kept[row][kept[row] > 0].min()
        mass, total = kept[row].double(), probabilities[row].double().sum()
        assert mass.sum() / total > goal - 1e-6
        assert mass[mass > least].sum() / total < goal, "one token fewer would do"
        assert torch.equal(kept[row] > 0, probabilities[row] >= least)


def test_top_p_of_equal_probabilities_keeps_them_all() -> None:
    kept = after_cut(torch.full((1, 1000), 0.001), Cuts(top_p=column(0.1, dtype=torch.float64)))
    assert int((kept > 0).sum()) == 1000


def test_min_p_keeps_a_share_of_the_largest() -> None:
    kept = after_cut(torch.tensor([[0.5, 0.25, 0.2, 0.05]]), Cuts(min_p=column(0.5)))
    assert kept.tolist() == [[0.5, 0.25, 0.0, 0.0]]


def test_top_p_counts_the_mass_of_what_the_other_cuts_left() -> None:
    """0.4 and 0.3 hold 0.7 of all, but only 0.875 of the three best; of what min-p leaves they are everything."""
    probabilities = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]]).expand(3, -1)
    cuts = Cuts(
        min_p=column(0.0, 0.0, 0.7),
        top_k=column(0, 3, 0, dtype=torch.int64),
        widest_top_k=3,
        top_p=column(0.69, 0.9, 0.99, dtype=torch.float64),
    )
    assert (after_cut(probabilities, cuts) > 0).sum(-1).tolist() == [2, 4, 2]  # the third and fourth are ties


@SIZES
def test_a_row_without_a_cut_keeps_its_bits_beside_rows_with_cuts(size: int) -> None:
    probabilities = torch.randn(3, size).softmax(-1)
    cuts = Cuts(
        min_p=column(0.3, 0.0, 0.0),
        top_k=column(0, 0, 3, dtype=torch.int64),
        widest_top_k=3,
        top_p=column(0.8, 1.0, 0.9, dtype=torch.float64),
    )
    assert torch.equal(after_cut(probabilities, cuts)[1], probabilities[1])


@SIZES
def test_a_cut_depends_on_its_own_row_alone(size: int) -> None:
    probabilities = (torch.randn(3, size) * 2).softmax(-1)
    alone = after_cut(probabilities[:1], Cuts(top_p=column(0.8, dtype=torch.float64)))
    cuts = Cuts(
        min_p=column(0.0, 0.1, 0.0),
        top_k=column(0, 0, 500, dtype=torch.int64),
        widest_top_k=500,
        top_p=column(0.8, 0.3, 0.999, dtype=torch.float64),
    )
    assert torch.equal(after_cut(probabilities, cuts)[:1], alone)


def test_draws_reach_every_part_of_a_wide_vocabulary_and_only_what_is_possible() -> None:
    probabilities = torch.zeros(1, 1000)
    probabilities[0, [0, 255, 256, 700, 999]] = torch.tensor([0.1, 0.2, 0.2, 0.1, 0.4])
    evenly = (torch.arange(2000).double() + 0.5) / 2000
    uniforms = torch.cat([evenly, torch.tensor([1 - 2.0**-48], dtype=torch.float64)])
    counts = Counter(draw(probabilities.expand(len(uniforms), -1).contiguous(), uniforms).tolist())
    assert counts == {0: 200, 255: 400, 256: 400, 700: 200, 999: 801}


@pytest.mark.parametrize("scale", (1.0, 0.37))
def test_a_draw_is_where_the_running_sum_passes_the_uniform_number(scale: float) -> None:
    """Also of probabilities that a cut has left short of 1."""
    probabilities = (torch.randn(50, 1009) * 2).softmax(-1) * scale
    uniforms = torch.rand(50, dtype=torch.float64)
    sums = probabilities.double().cumsum(-1)
    expected = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True).squeeze(-1)
    assert torch.equal(draw(probabilities, uniforms), expected)


@SIZES
def test_no_uniform_number_draws_an_impossible_token(size: int) -> None:
    probabilities = torch.rand(1, size).masked_fill_(torch.rand(1, size) < 0.9, 0.0)
    probabilities[0, size // 2] = 1e-6
    probabilities /= probabilities.sum()
    uniforms = torch.rand(500, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2.0**-48], dtype=torch.float64)
    drawn = draw(probabilities.expand(len(uniforms), -1).contiguous(), uniforms)
    assert (probabilities[0, drawn] > 0).all()


@pytest.mark.parametrize("only", (0, 300, 999))
def test_the_only_possible_token_is_drawn_whatever_the_uniform_number(only: int) -> None:
    probabilities = torch.zeros(3, 1000)
    probabilities[:, only] = 1.0
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-48], dtype=torch.float64)
    assert draw(probabilities, uniforms).tolist() == [only] * 3


def test_a_draw_at_the_edge_of_a_chunk_does_not_depend_on_the_rows_beside_it() -> None:
    """There the last bit of a sum decides."""
    probabilities = (torch.randn(1, 50257) * 3).softmax(-1)
    sums = chunk_masses(probabilities).cumsum(-1).squeeze(0)
    edges = sums[:-1] / sums[-1]
    together = draw(probabilities.expand(len(edges), -1).contiguous(), edges)
    alone = [draw(probabilities, edge[None]) for edge in edges]
    beside = (torch.randn(2 * len(edges), 50257) * torch.rand(2 * len(edges), 1) * 5).softmax(-1)
    beside[1::2] = probabilities
    mixed = draw(beside, edges.repeat_interleave(2))[1::2]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, mixed)


@pytest.mark.parametrize("value", (0.0, torch.nan))
def test_a_row_that_is_no_distribution_gets_a_token_of_the_vocabulary(value: float) -> None:
    drawn = draw(torch.full((1, 1000), value), torch.tensor([0.5], dtype=torch.float64))
    assert 0 <= int(drawn[0]) < 1000


def test_repetition_scales_towards_less_likely() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, -torch.inf, 2.0]])
    penalize_repetition(logits, torch.tensor([[4.0, 4.0, 4.0, 4.0, 1.0]]))
    assert logits.tolist() == [[0.5, -8.0, 0.0, -torch.inf, 2.0]]


def test_frequency_counts_and_presence_does_not() -> None:
    logits = torch.tensor([[1.0, 1.0, -torch.inf], [1.0, 1.0, 1.0]])
    counts = torch.tensor([[0.0, 3.0, 1.0], [0.0, 2.0, 1.0]])
    penalize_counts(logits, counts, column(0.5, 0.0), column(0.25, -1.0))
    assert logits.tolist() == [[1.0, -0.75, -torch.inf], [1.0, 2.0, 2.0]]
