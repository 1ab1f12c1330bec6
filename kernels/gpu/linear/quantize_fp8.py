"""Rows as fp8 and one scale each, as `kernels/quantize_fp8.py` means it.

    scale = max |row| / LARGEST;  y = fp8(row / scale);  a row of zeros has scale 1

One program a row, which it reads once and keeps. sm_80 has no such type: there `dtype` must not be asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.fp8_types import FP8_TYPES, Fp8Type
from kernels.gpu.row_block import assert_packed, assert_rows, row_block


@triton.jit
def _quantize_fp8_kernel(
    rows_ptr,  # [rows, WIDTH]
    out_ptr,  # [rows, WIDTH] fp8, written
    scales_ptr,  # [rows] fp32, written
    rows_stride,  # elements from one row to the next
    WIDTH: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,  # WIDTH or the power of two above
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < WIDTH
    x = tl.load(rows_ptr + row * rows_stride + offs, mask, 0.0).to(tl.float32)  # (BLOCK)
    greatest = tl.max(tl.abs(x))
    # As torch divides: a quotient that is off by a bit would be another number of fp8 now and then.
    scale = tl.where(greatest == 0.0, 1.0, tl.div_rn(greatest, tl.full((), LARGEST, tl.float32)))
    tl.store(scales_ptr + row, scale)
    tl.store(out_ptr + row * WIDTH + offs, tl.div_rn(x, scale), mask)


def quantize_fp8(
    rows: Tensor,  # [rows, width]
    dtype: torch.dtype = torch.float8_e4m3fn,
    out: tuple[Tensor, Tensor] | None = None,  # what is returned, written
) -> tuple[Tensor, Tensor]:  # [rows, width] of `dtype`, scales [rows, 1] fp32
    num_rows, width = rows.shape
    if out is None:
        out = rows.new_empty(num_rows, width, dtype=dtype), rows.new_empty(num_rows, 1, dtype=torch.float32)
    quantized, scales = out
    assert quantized.dtype == dtype and scales.dtype == torch.float32, f"{quantized.dtype}, {scales.dtype}"
    assert_rows("rows", rows, width)
    assert_packed("the fp8 rows", quantized, num_rows, width)
    assert_packed("scales", scales, num_rows, 1)
    if not num_rows:
        return out
    block, num_warps = row_block(width)
    _quantize_fp8_kernel[(num_rows,)](
        rows,
        quantized,
        scales,
        rows.stride(0),
        WIDTH=width,
        LARGEST=torch.finfo(dtype).max,
        BLOCK=block,
        num_warps=num_warps,
        **PINNED_OPTIONS,
    )
    return out


def _compiled(width: int, fp8: Fp8Type) -> Compiled:
    block, num_warps = row_block(width)
    return Compiled(
        name=f"quantize_fp8 bf16 {width} {fp8.name}",
        kernel=_quantize_fp8_kernel,
        types={"rows_ptr": "*bf16", "out_ptr": f"*{fp8.name}", "scales_ptr": "*fp32", "rows_stride": "i32"},
        constexprs={"WIDTH": width, "LARGEST": torch.finfo(fp8.dtype).max, "BLOCK": block},
        num_warps=num_warps,
        aligned=("rows_stride",),
        targets=fp8.targets,
    )


COMPILED = tuple(_compiled(width, fp8) for width in (4096, 14336) for fp8 in FP8_TYPES)
