"""Experts without a look of the host: each kernel, and all together, against `kernels/experts.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.activations import GATED_ACTIVATIONS as MEANT_ACTIVATIONS
from kernels.experts import GroupedExperts
from kernels.experts import choose_experts as meant_choose_experts
from kernels.fp8_linear import Fp8Packer
from kernels.gpu.activations import GATED_ACTIVATIONS
from kernels.gpu.experts import stacked_experts as experts_of_gpu
from kernels.gpu.experts.choice import choose_experts
from kernels.gpu.experts.grouped_matmul import TILES, choose_tile, experts_matmul, tiles_of
from kernels.gpu.experts.order import SortedPairs, sort_by_expert
from kernels.gpu.experts.stacked_experts import StackedExperts
from kernels.gpu.experts.weighted_sum import sum_of_experts
from kernels.gpu.fp8_types import fp8_dtype_of
from kernels.gpu.kernel_table import GpuSizes, select_gpu_kernels
from kernels.gpu.linear.fixed_order_matmul import Tile
from kernels.linear import PlainLinear
from kernels.quantize_fp8 import Fp8Weight, quantize_fp8

AssertClose = Callable[[Tensor, Tensor], None]
HALF = torch.float16


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def matrices(num_experts: int, hidden: int, features: int, like: Tensor) -> Iterator[Tensor]:
    """gate_up and down of each expert in turn."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_experts):
        for shape in ((2 * features, hidden), (hidden, features)):
            yield (torch.randn(shape, generator=generator) / shape[1] ** 0.5).to(like)


@pytest.mark.parametrize("normalized", (True, False))
@pytest.mark.parametrize("shape", ((1, 1, 1), (3, 5, 2), (4, 9, 3), (2, 128, 8)), ids=str)
def test_the_most_likely_experts_are_chosen_with_their_probabilities(
    shape: tuple[int, int, int], normalized: bool, device: torch.device, assert_close: AssertClose
) -> None:
    num_tokens, num_experts, num_chosen = shape
    scores = 3.0 * random(num_tokens, num_experts + 3, device=device)[:, :num_experts]
    weights, chosen = choose_experts(scores, num_chosen, normalized)
    meant_weights, meant = meant_choose_experts(scores, num_chosen, normalized)
    assert torch.equal(chosen.long(), meant)
    assert_close(weights, meant_weights)


def test_of_experts_alike_the_first_are_chosen(device: torch.device) -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 0.0]], device=device)
    assert choose_experts(scores, 4, True)[1].tolist() == [[1, 3, 0, 2]]


def test_a_row_of_no_numbers_chooses_experts_that_there_are(device: torch.device) -> None:
    scores = random(3, 6, device=device)
    scores[1], scores[2, ::2] = torch.nan, torch.nan
    weights, chosen = choose_experts(scores, 3, True)
    assert chosen[1:].tolist() == [[0, 1, 2], [0, 2, 4]]
    assert weights[0].isfinite().all()


def chosen_by(kind: str, num_tokens: int, num_chosen: int, num_experts: int) -> Tensor:
    if kind == "one":
        return torch.full((num_tokens, num_chosen), num_experts - 2)
    first = torch.rand(num_tokens, num_experts - 1).topk(num_chosen, -1).indices
    return first + (first >= 2)  # nobody chooses expert 2


@pytest.mark.parametrize("kind", ("one", "others"))
@pytest.mark.parametrize(
    "shape", ((1, 1), (1, 3), (21, 4), (700, 3)), ids=str
)  # the last is more than a block
@pytest.mark.parametrize("tile_rows", (4, 64))
def test_pairs_are_sorted_into_tiles_of_one_expert(
    tile_rows: int, shape: tuple[int, int], kind: str, device: torch.device
) -> None:
    chosen = chosen_by(kind, *shape, num_experts=6).to(device, torch.int32)
    pairs = sort_by_expert(chosen, 6, tile_rows)
    assert pairs.order.tolist() == chosen.flatten().argsort(stable=True).tolist()
    experts_by_place = chosen.flatten()[pairs.order.long()].tolist()
    found = []
    for expert, first, end in pairs.tiles.T.tolist():
        if expert >= 0:
            assert first < end, "a tile of nothing is marked as such"
            found += [(place, expert) for place in range(first, min(first + tile_rows, end))]
    assert found == list(enumerate(experts_by_place))


def test_tiles_are_as_high_as_an_expert_has_rows() -> None:
    tiles = tiles_of(torch.bfloat16, deterministic=False)
    assert [choose_tile(tiles, pairs, 8).rows for pairs in (1, 128, 129, 512, 513, 9999)] == [
        *(16, 16, 64, 64, 128, 128)
    ]


@pytest.mark.parametrize("from_tokens", (True, False), ids=("from_tokens", "to_pairs"))
@pytest.mark.parametrize("tile", TILES[2], ids=lambda tile: str(tile.rows))
def test_rows_are_multiplied_with_their_experts_weight_and_put_into_their_places(
    tile: Tile, from_tokens: bool, device: torch.device, assert_close: AssertClose
) -> None:
    """Sums that end inside a step, outputs inside a tile, rows of `x` that lie apart."""
    chosen = chosen_by("others", 67, 2, 5).to(device, torch.int32)
    pairs = sort_by_expert(chosen, 5, tile.rows)
    order = pairs.order.long()
    weight = random(5, 70, 140, device=device, dtype=HALF) / 12
    x = random(67 if from_tokens else 134, 150, device=device, dtype=HALF)[:, :140]
    out = x.new_full((134, 70), torch.nan)
    experts_matmul(x, None, weight, None, pairs, tile, from_tokens, out)
    by_pair = x[torch.arange(134) // 2] if from_tokens else x[order.argsort()]
    meant = torch.einsum("pk,pnk->pn", by_pair.float(), weight[chosen.flatten().long()].float())
    assert_close(out, meant[order] if from_tokens else meant)


@pytest.mark.parametrize("shape", ((1, 8, 40), (5, 3, 1030)), ids=str)
def test_what_experts_say_is_added_up_by_weight(
    shape: tuple[int, int, int], device: torch.device, assert_close: AssertClose
) -> None:
    num_tokens, num_chosen, hidden = shape
    pairs = random(num_tokens * num_chosen, hidden, device=device)
    weights = random(num_tokens, num_chosen, device=device)
    meant = (weights[:, :, None].double() * pairs.view(num_tokens, num_chosen, hidden).double()).sum(1)
    assert_close(sum_of_experts(pairs, weights), meant)


# Tokens, chosen, experts, hidden, features.
SHAPES = pytest.mark.parametrize(
    "shape",
    ((0, 2, 4, 16, 8), (1, 1, 1, 1, 1), (1, 8, 9, 40, 24), (7, 3, 7, 33, 20), (80, 2, 3, 48, 36)),
    ids=str,
)


@SHAPES
@pytest.mark.parametrize("activation", ("gelu",))
def test_stacked_experts_say_what_grouped_ones_say(
    activation: str, shape: tuple[int, int, int, int, int], device: torch.device, assert_close: AssertClose
) -> None:
    num_tokens, num_chosen, num_experts, hidden, features = shape
    x = random(num_tokens, hidden, device=device)
    routed = meant_choose_experts(random(num_tokens, num_experts, device=device), num_chosen, True)
    stacked, grouped = (
        pack(matrices(num_experts, hidden, features, x), num_experts)
        for pack in (StackedExperts, lambda *given: GroupedExperts(*given, PlainLinear))
    )
    out = stacked(x, *routed, GATED_ACTIVATIONS[activation])
    assert out.shape == x.shape
    if num_tokens:
        assert_close(out, grouped(x, *routed, MEANT_ACTIVATIONS[activation]))


def test_rows_of_no_numbers_leave_the_others_alone(device: torch.device) -> None:
    x, scores = random(6, 20, device=device), random(6, 4, device=device)
    experts, activate = StackedExperts(matrices(4, 20, 12, x), 4), GATED_ACTIVATIONS["silu"]
    alone = experts(x, *choose_experts(scores, 2, True), activate)
    x[4:], scores[4:] = torch.nan, torch.nan
    beside = experts(x, *choose_experts(scores, 2, True), activate)
    assert torch.allclose(alone[:4], beside[:4], rtol=1e-6, atol=1e-6)
    assert beside[4:].isnan().all()


def test_in_deterministic_mode_a_row_has_its_bits_in_any_batch(device: torch.device) -> None:
    x = random(110, 64, device=device, dtype=HALF)
    experts = StackedExperts(matrices(3, 64, 32, x), 3, deterministic=True)
    routed = meant_choose_experts(random(110, 3, device=device), 2, True)

    def run(begin: int, end: int) -> Tensor:
        weights, chosen = (each[begin:end] for each in routed)
        return experts(x[begin:end], weights, chosen, MEANT_ACTIVATIONS["silu"])

    whole = run(0, 110)
    for begin, end in ((0, 1), (7, 8), (30, 70)):
        assert torch.equal(run(begin, end), whole[begin:end])


@pytest.mark.parametrize(("deterministic", "rows"), ((False, [16, 64, 128, 16]), (True, [64, 64])))
def test_the_first_call_meets_every_tile_and_deterministic_mode_has_one(
    deterministic: bool, rows: list[int], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []

    def sort(chosen: Tensor, num_experts: int, tile_rows: int) -> SortedPairs:
        met.append(tile_rows)
        return sort_by_expert(chosen, num_experts, tile_rows)

    monkeypatch.setattr(experts_of_gpu, "sort_by_expert", sort)
    x = random(2, 16, device=device, dtype=HALF)
    experts = StackedExperts(matrices(2, 16, 8, x), 2, deterministic=deterministic)
    chosen = torch.tensor([[0], [1]], device=device)
    for _ in range(2):
        experts(x, torch.ones(2, 1, device=device), chosen, GATED_ACTIVATIONS["silu"])
    assert sorted(met) == sorted(rows)


def rounded_rightly(
    rows: Tensor, dtype: torch.dtype, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Triton's interpreter rounds to fp8 wrongly (see `test_gpu_quantize_fp8.py`)."""
    quantized = quantize_fp8(rows, dtype)
    for target, each in zip(out or (), quantized, strict=False):
        target.copy_(each)
    return quantized


@pytest.mark.parametrize("num_tokens", (3, 90))
def test_experts_in_fp8_say_what_they_mean(
    num_tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(experts_of_gpu, "quantize_fp8", rounded_rightly)
    x, scores = random(num_tokens, 48, device=device), random(num_tokens, 3, device=device)
    routed, activate = meant_choose_experts(scores, 2, True), MEANT_ACTIVATIONS["silu"]
    stacked = StackedExperts(matrices(3, 48, 32, x), 3, fp8_dtype_of(device))
    out = stacked(x, *routed, activate).cpu()
    pack = Fp8Packer(deterministic=True).pack
    grouped = GroupedExperts(matrices(3, 48, 32, x.cpu()), 3, pack)
    meant = grouped(x.cpu(), *(each.cpu() for each in routed), activate)
    assert (
        out - meant
    ).norm() < 0.01 * meant.norm()  # what is close to half a step may be rounded either way


def test_experts_that_are_fp8_already_are_taken_bit_by_bit(device: torch.device) -> None:
    x = random(4, 48, device=device)
    given = [Fp8Weight(*quantize_fp8(matrix)) for matrix in matrices(3, 48, 32, x)]
    stacked = StackedExperts(iter(given), 3, torch.float8_e4m3fn)
    for index, weight in enumerate(given):
        stack = (stacked._gate_up, stacked._down)[index % 2]
        numbers, scales = stack.weight[index // 2], stack.scales
        assert torch.equal(numbers.view(torch.uint8), weight.numbers.view(torch.uint8))
        assert scales is not None and torch.equal(scales[index // 2], weight.scales)


def test_the_kernel_table_hands_on_how_experts_are_multiplied(device: torch.device) -> None:
    sizes = GpuSizes(device, torch.float16, 1, 1, 16, 1, 1, 16, 8, True, fp8_weights=torch.float8_e4m3fn)
    pack = select_gpu_kernels(sizes, ()).decoder.pack_experts
    assert isinstance(pack, partial)
    assert pack.keywords == {"fp8_dtype": torch.float8_e4m3fn, "deterministic": True}
    wide = select_gpu_kernels(sizes, ()).decoder.pack_wide_experts
    assert isinstance(wide, partial) and wide.keywords == {"deterministic": True}
