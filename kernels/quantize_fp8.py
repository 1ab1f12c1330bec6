"""Rows of numbers as fp8 and one scale each, in plain torch.

    scale = max |row| / largest;  y = fp8(row / scale), so that row ≈ y · scale;  a row of zeros has scale 1

For a step's activations a row is a token, for a weight [out, in] it is an output channel. `largest` is the format's
own: 448 of e4m3fn, 240 of e4m3fnuz.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fp8Weight(NamedTuple):
    """A weight that is quantised already: packers take it for what it is."""

    numbers: Tensor  # [outputs, features] fp8, of the kind that the device multiplies
    scales: Tensor  # [outputs, 1] fp32


Weight = Tensor | Fp8Weight


def quantize_fp8(
    rows: Tensor,  # [rows, width]
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:  # [rows, width] of `dtype`, scales [rows, 1] fp32
    largest = torch.finfo(dtype).max
    wide = rows.float()
    scales = wide.abs().amax(-1, keepdim=True) / largest
    scales.masked_fill_(scales == 0.0, 1.0)
    return (wide / scales).to(dtype), scales


def halves_of(bits: Tensor) -> Tensor:  # e4m3fn as int16, overwritten -> fp16, divided by 256
    """Sign, exponent and mantissa moved to where fp16 has them, more than ten times as fast as torch converts them.
    fp16's exponent is offset by 8 more. NaN becomes 480 / 256."""
    return bits.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
