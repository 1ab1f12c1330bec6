"""A linear in fp8 as a GPU has it, by Triton and by torch's library, against what it means.

The interpreter rounds to fp8 wrongly (see `test_gpu_quantize_fp8.py`), so that without a GPU the meaning quantises
here, and what is done with fp8 numbers is Triton's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.fp8_linear import Fp8Packer as MeantPacker
from kernels.gpu.fp8_types import fp8_dtype_of
from kernels.gpu.linear import fp8_linear
from kernels.gpu.linear.fixed_order_linear import tiles_agree
from kernels.gpu.linear.fixed_order_matmul import FP8_TILE
from kernels.gpu.linear.fp8_linear import Fp8Linear, Fp8Packer, LibraryFp8Linear, library_works
from kernels.quantize_fp8 import Fp8Weight, quantize_fp8

AssertClose = Callable[[Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def rounded_rightly(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    if fp8_dtype_of(device) is None:
        pytest.skip("this GPU has no fp8")
    if device.type == "cpu":
        monkeypatch.setattr(fp8_linear, "quantize_fp8", quantize_fp8)


@pytest.fixture
def library(device: torch.device, rounded_rightly: None) -> None:
    fp8_dtype = fp8_dtype_of(device)
    if fp8_dtype is None or not library_works(device, torch.bfloat16, fp8_dtype):
        pytest.skip("this torch has none for this device")


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def packer(
    device: torch.device, dtype: torch.dtype = torch.float32, deterministic: bool = False
) -> Fp8Packer:
    fp8_dtype = fp8_dtype_of(device)
    assert fp8_dtype is not None, "the test was not skipped"
    return Fp8Packer(device, dtype, fp8_dtype, deterministic)


def meant(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    on_cpu = None if bias is None else bias.cpu()
    return MeantPacker(deterministic=True).pack(weight.cpu(), on_cpu)(x.cpu()).to(x.device)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("shape", ((1, 1, 1), (3, 130, 7), (70, 145, 66)), ids=str)
@pytest.mark.parametrize("with_bias", (False, True), ids=("plain", "bias"))
def test_equals_the_meaning_for_few_and_for_many_rows(
    with_bias: bool,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    assert_close: AssertClose,
) -> None:
    rows, features, outputs = shape
    x, weight = (random(n, features, device=device, dtype=dtype) / features**0.25 for n in (rows, outputs))
    bias = random(outputs, device=device, dtype=dtype) if with_bias else None
    linear = packer(device, dtype).pack(weight, bias)
    assert isinstance(linear, Fp8Linear), "the library refuses sizes that are no multiples of 16"
    found = linear(x)
    # The sums of Hopper's fp8 instruction keep few bits.
    assert_close(found.half() if device.type == "cuda" else found, meant(x, weight, bias))


def test_the_library_equals_the_meaning(
    library: None, device: torch.device, assert_close: AssertClose
) -> None:
    shapes, dtype = ((48, 64), (48,), (5, 64)), torch.bfloat16  # a GPU's has no fp32 results with a bias
    weight, bias, x = (random(*shape, device=device, dtype=dtype) for shape in shapes)
    linear = packer(device, dtype).pack(weight, bias)
    assert isinstance(linear, LibraryFp8Linear)
    assert_close(linear(x / 8.0), meant(x / 8.0, weight, bias))


def test_the_library_is_chosen_where_it_may_be(library: None, device: torch.device) -> None:
    chosen = {
        (size, deterministic): type(packer(device, torch.bfloat16, deterministic).pack(weight, None))
        for size in (32, 40)
        for deterministic in (False, True)
        for weight in (random(32, size, device=device, dtype=torch.bfloat16),)
    }
    assert chosen.pop((32, False)) is LibraryFp8Linear
    assert set(chosen.values()) == {Fp8Linear}


def fails(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")


def ignores_scales(x: Tensor, weight: Tensor, *_: Any, out_dtype: torch.dtype, **__: Any) -> Tensor:
    return (x.float() @ weight.float()).to(out_dtype)


@pytest.mark.parametrize("broken", (fails, ignores_scales))
def test_a_library_that_fails_or_is_wrong_is_not_used(
    broken: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", broken, raising=False)
    weight = random(32, 32, device=device)
    assert isinstance(packer(device).pack(weight, None), Fp8Linear)


def test_a_torch_without_the_library_does_without(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch, "_scaled_mm", raising=False)
    assert not library_works(device, torch.float32, torch.float8_e4m3fn)


def test_a_deterministic_row_has_its_bits_in_any_batch(device: torch.device) -> None:
    """The interpreter's products are numpy's, which have other bits at other places of a tile."""
    x, weight = (random(n, 160, device=device) for n in (130, 70))
    linear = packer(device, deterministic=True).pack(weight, None)
    whole = linear(x)
    for begin, end in ((0, 1), (0, 64), (0, 65), (128, 130)):
        assert torch.equal(linear(x[begin:end]), whole[begin:end])


def test_tiles_are_compared_by_the_products_that_they_are_for(device: torch.device) -> None:
    tiles_seen = []

    def multiply(x: Tensor, weight: Tensor, out: Tensor, tile: Any) -> None:
        tiles_seen.append(tile)
        out.fill_(float(len(tiles_seen)))

    assert not tiles_agree(random(8, 16, device=device), fp8_linear.FP8_FEW_ROWS_TILE, FP8_TILE, multiply)
    assert tiles_seen == [fp8_linear.FP8_FEW_ROWS_TILE, FP8_TILE]


@pytest.mark.parametrize("deterministic", (False, True))
def test_a_weight_that_is_fp8_already_is_taken_as_it_is(deterministic: bool, device: torch.device) -> None:
    given = Fp8Weight(*quantize_fp8(random(70, 160, device=device), packer(device)._fp8_dtype))
    x = random(3, 160, device=device)
    found = packer(device, deterministic=deterministic).pack(given, None)(x)
    rounded, scales = quantize_fp8(x, given.numbers.dtype)
    expected = (rounded.float() * scales) @ (given.numbers.float() * given.scales).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_zeros_come_to_the_bias(device: torch.device) -> None:
    weight, bias = random(6, 20, device=device), random(6, device=device)
    assert torch.equal(packer(device).pack(weight, bias)(torch.zeros(2, 20, device=device))[1], bias)


def test_no_rows_make_no_rows(device: torch.device) -> None:
    linear = packer(device).pack(random(3, 16, device=device), None)
    assert linear(torch.empty(0, 16, device=device)).shape == (0, 3)
