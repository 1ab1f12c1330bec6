"""A linear in fp8 in plain torch: how far from the product that it stands for, and what it may not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.dispatch import select_kernels
from kernels.fp8_linear import Fp8Packer, quantize_weight
from kernels.gpu.fp8_types import fp8_dtype_of, fp8_dtype_of_capability
from kernels.quantize_fp8 import quantize_fp8

EXACT, FAST = (pytest.param(flag, id=name) for flag, name in ((True, "deterministic"), (False, "fp32")))
BOTH = pytest.mark.parametrize("deterministic", (EXACT, FAST))
SHAPES = ((1, 1, 1), (1, 130, 7), (5, 16, 3), (33, 200, 70))  # rows, features, outputs


def rounding(rows: Tensor) -> Tensor:
    """Of each number, at most: half a unit of 3 bits behind the first; below 2^-6 of the scale, half of 2^-9 of it."""
    scales = rows.abs().amax(-1, keepdim=True) / 448.0
    return torch.maximum(rows.abs() * 2.0**-4, scales * 2.0**-10)


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_off_by_at_most_what_rounding_both_operands_costs(
    shape: tuple[int, int, int], deterministic: bool
) -> None:
    rows, features, outputs = shape
    x, weight, bias = torch.randn(rows, features), torch.randn(outputs, features), torch.randn(outputs)
    found = Fp8Packer(deterministic).pack(weight, bias)(x)
    of_x, of_weight = rounding(x), rounding(weight)
    bound = x.abs() @ of_weight.T + of_x @ weight.abs().T + of_x @ of_weight.T
    assert ((found - (x @ weight.T + bias)).abs() <= bound * 1.001).all()


@BOTH
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_is_the_product_of_the_quantised_numbers(dtype: torch.dtype, deterministic: bool) -> None:
    x, weight = (torch.randn(n, 300).to(dtype) for n in (9, 40))
    (rows, row_scales), (channels, channel_scales) = quantize_fp8(x), quantize_fp8(weight)
    meant = (rows.double() * row_scales) @ (channels.double() * channel_scales).T
    found = Fp8Packer(deterministic).pack(weight, None)(x)
    tolerance = 16.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, meant.to(dtype), rtol=tolerance, atol=tolerance)


def test_each_row_of_a_weight_that_is_widened_in_parts_has_its_place() -> None:
    weight = torch.randn(5, 300_000)
    (parts, scales), whole = quantize_weight(weight), quantize_fp8(weight)
    assert torch.equal(parts.view(torch.uint8), whole[0].view(torch.uint8)) and torch.equal(scales, whole[1])
    x = torch.randn(2, 300_000)
    linear = Fp8Packer(deterministic=False).pack(weight, None)
    each = [Fp8Packer(deterministic=False).pack(row[None], None)(x) for row in weight]
    torch.testing.assert_close(linear(x), torch.cat(each, 1), rtol=1e-4, atol=1e-2)


def test_a_deterministic_row_has_its_bits_in_any_batch() -> None:
    kernels = select_kernels(torch.float32, 16, 1, (), deterministic=True, fp8_weights=True)
    x, linear = torch.randn(67, 3000), kernels.pack_layer_linear(torch.randn(130, 3000), None)
    whole = linear(x)
    for begin, end in ((0, 1), (5, 8), (3, 66)):
        assert torch.equal(linear(x[begin:end]), whole[begin:end])


@BOTH
def test_zeros_come_to_the_bias(deterministic: bool) -> None:
    weight, bias = torch.randn(6, 20), torch.randn(6)
    weight[2] = 0.0
    x = torch.stack([torch.zeros(20), torch.randn(20)])
    found = Fp8Packer(deterministic).pack(weight, bias)(x)
    assert torch.equal(found[0], bias) and found[1, 2] == bias[2]


@BOTH
def test_what_is_not_a_number_stays_none(deterministic: bool) -> None:
    """Though the bits of a NaN, moved to another format, would be one."""
    x, weight = torch.randn(2, 20), torch.randn(3, 20)
    x[0, 4] = weight[1, 7] = torch.nan
    found = Fp8Packer(deterministic).pack(weight, None)(x)
    assert found.isnan().tolist() == [[True, True, True], [False, True, False]]


def test_no_rows_make_no_rows() -> None:
    assert Fp8Packer(deterministic=False).pack(torch.randn(3, 4), None)(torch.empty(0, 4)).shape == (0, 3)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    (((8, 0), None), ((8, 6), None), ((8, 9), torch.float8_e4m3fn), ((10, 0), torch.float8_e4m3fn)),
)
def test_gpus_from_8_9_on_have_fp8(capability: tuple[int, int], dtype: torch.dtype | None) -> None:
    assert fp8_dtype_of_capability(*capability) == dtype


def test_a_cpu_computes_with_the_fp8_of_most_gpus() -> None:
    assert fp8_dtype_of(torch.device("cpu")) == torch.float8_e4m3fn
