"""Norms in Triton against what they mean, computed in fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import add_rms_norm as meant
from kernels.gpu.add_rms_norm import add_rms_norm, rms_norm
from kernels.gpu.layer_norm import add_layer_norm, layer_norm
from kernels.layer_norm import layer_norm as meant_layer_norm

AssertClose = Callable[[torch.Tensor, torch.Tensor], None]
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
SHAPES = pytest.mark.parametrize("shape", ((1, 7), (3, 65), (2, 1024), (63, 80)), ids=str)
EPS = 1e-5

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


def wide_rows(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Rows with something else between them."""
    return torch.randn(num_rows, width + 3).to(device, dtype)[:, :width]


@DTYPES
@SHAPES
def test_rms_norm_reads_rows_that_lie_apart(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    x, weight = wide_rows(*shape, dtype, device), torch.randn(shape[1]).to(device, dtype)
    out = rms_norm(x, weight, EPS)
    assert_close(out.cpu(), meant.rms_norm(x.float(), weight.float(), EPS).cpu())


@DTYPES
@SHAPES
def test_add_rms_norm_adds_to_the_residual_first(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    x, residual = wide_rows(*shape, dtype, device), wide_rows(*shape, dtype, device)
    weight, summed = torch.randn(shape[1]).to(device, dtype), x.float() + residual.float()
    out = add_rms_norm(x, residual, weight, EPS)
    assert_close(residual.cpu(), summed.cpu())
    assert_close(out.cpu(), meant.rms_norm(residual.float(), weight.float(), EPS).cpu())


@DTYPES
@SHAPES
@pytest.mark.parametrize("biased", (True, False))
def test_layer_norm_keeps_its_digits_around_a_large_mean(
    biased: bool, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    x = wide_rows(*shape, dtype, device) + 20.0
    weight = torch.randn(shape[1]).to(device, dtype)
    bias = torch.randn(shape[1]).to(device, dtype) if biased else None
    out = layer_norm(x, weight, bias, EPS)
    meaning = meant_layer_norm(x.double(), weight.double(), None if bias is None else bias.double(), EPS)
    assert_close(out.cpu(), meaning.float().cpu())


@DTYPES
@SHAPES
def test_add_layer_norm_adds_to_the_residual_first(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    x, residual = wide_rows(*shape, dtype, device), wide_rows(*shape, dtype, device)
    weight, bias = torch.randn(2, shape[1]).to(device, dtype)
    summed = x.float() + residual.float()
    out = add_layer_norm(x, residual, weight, bias, EPS)
    assert_close(residual.cpu(), summed.cpu())
    assert_close(out.cpu(), meant_layer_norm(residual.float(), weight.float(), bias.float(), EPS).cpu())


def test_a_norm_of_no_rows_has_no_rows(device: torch.device) -> None:
    assert rms_norm(torch.empty(0, 8, device=device), torch.ones(8, device=device), EPS).shape == (0, 8)


def test_a_weight_of_another_width_is_refused(device: torch.device) -> None:
    with pytest.raises(AssertionError, match=r"weight is \(7,\), not \(8,\)"):
        rms_norm(torch.ones(2, 8, device=device), torch.ones(7, device=device), EPS)
