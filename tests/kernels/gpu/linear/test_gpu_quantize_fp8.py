"""Rows as fp8 and one scale each, in Triton against what it means.

The interpreter rounds to fp8 wrongly where the mantissa overflows. Without a GPU, the numbers are such that none needs
rounding; how a GPU rounds is compared where there is one.
"""

from __future__ import annotations

import pytest
import torch

from kernels.gpu.linear.quantize_fp8 import quantize_fp8
from kernels.quantize_fp8 import quantize_fp8 as meant_quantize_fp8


def exact_rows(num_rows: int, width: int) -> torch.Tensor:
    """A largest number of -448 · 2^k, and others that fp8 has, times 2^k."""
    rows = torch.randint(-16, 17, (num_rows, width)).float()
    rows[:, -1] = -448.0
    return rows * torch.exp2(torch.arange(num_rows) - 3.0)[:, None]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", ((1, 1), (3, 7), (5, 130)), ids=str)
def test_equals_the_meaning_where_nothing_is_rounded(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    rows = exact_rows(*shape).to(device, dtype)
    quantized, scales = quantize_fp8(rows)
    meant_quantized, meant_scales = meant_quantize_fp8(rows)
    assert torch.equal(scales, meant_scales)
    assert torch.equal(quantized.float(), meant_quantized.float())
    assert torch.equal(quantized.float() * scales, rows.float())


def test_a_row_of_zeros_stays_one(device: torch.device) -> None:
    quantized, scales = quantize_fp8(torch.zeros(2, 5, device=device))
    assert not quantized.float().any()
    assert scales.flatten().tolist() == [1.0, 1.0]


def test_writes_what_is_given_to_be_written(device: torch.device) -> None:
    out = torch.empty(2, 6, device=device).to(torch.float8_e4m3fn), torch.empty(2, 1, device=device)
    assert quantize_fp8(exact_rows(2, 6).to(device), out=out) is out


def test_no_rows_make_no_rows(device: torch.device) -> None:
    quantized, scales = quantize_fp8(torch.empty(0, 5, device=device))
    assert quantized.shape == (0, 5) and scales.shape == (0, 1)


def test_the_meaning_is_off_by_at_most_half_a_step_of_fp8() -> None:
    rows = torch.randn(9, 300)
    quantized, scales = meant_quantize_fp8(rows)
    steps = (quantized.float() * scales - rows).abs() / rows.abs().clamp(min=2.0**-6 * scales)
    assert steps.max() <= 2.0**-4 * 1.001


@pytest.mark.gpu
def test_a_gpu_rounds_as_the_meaning_does() -> None:
    rows = torch.randn(64, 4096, device="cuda", dtype=torch.bfloat16)
    quantized, scales = quantize_fp8(rows)
    meant_quantized, meant_scales = meant_quantize_fp8(rows)
    torch.testing.assert_close(scales, meant_scales)
    assert (
        quantized.float() == meant_quantized.float()
    ).float().mean() > 0.999  # a quotient may be off by a bit
