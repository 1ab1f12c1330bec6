"""The matmul of deterministic mode and that of fp8 rows, against fp64; and rows that depend on nothing beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.gpu.linear.fixed_order_linear import (
    FEW_OUTPUTS_TILE,
    FEW_ROWS_TILE,
    MANY_ROWS_TILE,
    FixedOrderPacker,
    TileChoice,
    tiles_agree,
)
from kernels.gpu.linear.fixed_order_matmul import FP32_TILE, Tile, fixed_order_matmul, fp8_matmul
from kernels.quantize_fp8 import quantize_fp8

AssertClose = Callable[[Tensor, Tensor], None]
# Rows, features, outputs: one of everything; sums that end inside a step; several tiles and a group of their rows.
SHAPES = pytest.mark.parametrize(
    "shape", ((1, 1, 1), (63, 80, 130), (130, 128, 257), (1100, 32, 140)), ids=str
)
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def poisoned(rows: int, outputs: int, like: Tensor) -> Tensor:
    return like.new_full((rows, outputs), torch.nan)


@SHAPES
@DTYPES
@pytest.mark.parametrize("with_bias", (False, True), ids=("plain", "bias"))
def test_equals_the_product_in_double_precision(
    with_bias: bool,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    device: torch.device,
    assert_close: AssertClose,
) -> None:
    rows, features, outputs = shape
    x, weight = (random(n, features, device=device, dtype=dtype) for n in (rows, outputs))
    x, weight = x / features**0.25, weight / features**0.25
    bias = random(outputs, device=device, dtype=dtype) if with_bias else None
    out = fixed_order_matmul(x, weight, bias, poisoned(rows, outputs, x))
    meaning = x.double() @ weight.double().T
    assert_close(out, meaning if bias is None else meaning + bias.double())


def test_rows_may_lie_apart(device: torch.device, assert_close: AssertClose) -> None:
    x, weight, out = (random(n, 90, device=device) for n in (5, 7, 5))
    before = out.clone()
    fixed_order_matmul(x[:, 20:60], weight[:, 50:], None, out[:, 3:10])
    assert_close(out[:, 3:10], x[:, 20:60].double() @ weight[:, 50:].double().T)
    assert torch.equal(out[:, 10:], before[:, 10:]), "what lies beside it is not written"


@DTYPES
def test_a_row_has_its_bits_in_any_batch(dtype: torch.dtype, device: torch.device) -> None:
    """And at any place of a tile; but the products of the interpreter, which are numpy's, have other bits elsewhere."""
    x, weight = (random(n, 96, device=device, dtype=dtype) for n in (259, 70))
    whole = fixed_order_matmul(x, weight)
    places = ((0, 1), (0, 65), (128, 129), (128, 259)) + ((5, 8), (130, 195)) * (device.type == "cuda")
    for begin, end in places:
        assert torch.equal(fixed_order_matmul(x[begin:end], weight), whole[begin:end])


def test_no_rows_make_no_rows(device: torch.device) -> None:
    weight = random(3, 4, device=device)
    assert fixed_order_matmul(weight[:0], weight).shape == (0, 3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_a_packed_linear_is_the_matmul_for_few_and_for_many_rows(
    dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    weight, bias = (random(*shape, device=device, dtype=dtype) / 4 for shape in ((40, 64), (40,)))
    linear = FixedOrderPacker("sm_90", 4).pack(weight, bias)
    for rows in (1, 64, 65, 257):
        x = random(rows, 64, device=device, dtype=dtype)
        assert_close(linear(x), fixed_order_matmul(x, weight, bias).double())


def test_the_smaller_the_weight_the_narrower_the_tile_for_few_rows() -> None:
    packer = FixedOrderPacker("sm_90", 132)
    assert packer.few_rows_tile(64 * 132) == FEW_ROWS_TILE
    assert packer.few_rows_tile(64 * 131) == FEW_OUTPUTS_TILE
    assert FixedOrderPacker("gfx942", 304).few_rows_tile(64) == FEW_ROWS_TILE


@pytest.mark.parametrize(("outputs", "least"), ((4096, 1025), (28672, 129)))
def test_the_largest_tile_is_for_as_many_rows_as_keep_all_processors_busy(outputs: int, least: int) -> None:
    tiles = TileChoice(FEW_ROWS_TILE, MANY_ROWS_TILE, FixedOrderPacker("sm_90", 132).least_many(outputs))
    assert [tiles.of(rows) for rows in (64, 65, least - 1, least)] == [
        FEW_ROWS_TILE,
        None,
        None,
        MANY_ROWS_TILE,
    ]


def test_tiles_that_sum_in_another_order_do_not_agree(device: torch.device) -> None:
    """Whatever is in the weight that they are asked for: zeros would tell nothing."""
    weight = torch.zeros(64, 256, device=device)
    assert tiles_agree(weight, FP32_TILE, FP32_TILE)
    assert not tiles_agree(
        weight, Tile(rows=64, outputs=64, features=64, num_warps=8, num_stages=3), FP32_TILE
    )


@pytest.mark.parametrize("shape", ((1, 16, 3), (65, 200, 70)), ids=str)
def test_fp8_rows_are_multiplied_with_their_scales(
    shape: tuple[int, int, int], device: torch.device, assert_close: AssertClose
) -> None:
    rows, features, outputs = shape
    x, weight = (quantize_fp8(random(n, features, device=device) / features**0.25) for n in (rows, outputs))
    bias, out = random(outputs, device=device), poisoned(rows, outputs, random(1, device=device))
    fp8_matmul(*x, *weight, bias, out)
    wide_x, wide_weight = (quantized.double() * scales for quantized, scales in (x, weight))
    # The sums of Hopper's fp8 instruction keep few bits.
    assert_close(out.half() if device.type == "cuda" else out, wide_x @ wide_weight.T + bias)


@pytest.mark.parametrize(
    ("weight_shape", "dtype"), (((3, 5), torch.float32), ((3, 4), torch.float16)), ids=("shape", "dtype")
)
def test_operands_that_do_not_fit_are_refused(
    weight_shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    with pytest.raises(AssertionError, match="weight"):
        fixed_order_matmul(random(2, 4, device=device), random(*weight_shape, device=device, dtype=dtype))
