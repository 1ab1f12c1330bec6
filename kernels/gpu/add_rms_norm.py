"""residual += x;  y = residual / sqrt(mean(residual²) + eps) · weight, as `kernels/add_rms_norm.py` means it.

One program a row, which it reads once and keeps: a row's bits do not depend on the others. Statistics are fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows, row_block


@triton.jit
def _add_rms_norm_kernel(
    x_ptr,  # [tokens, HIDDEN], or None: nothing is added
    residual_ptr,  # [tokens, HIDDEN], written where x is added
    weight_ptr,  # [HIDDEN]
    out_ptr,  # [tokens, HIDDEN], written
    x_stride,  # elements from one row to the next
    residual_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,  # HIDDEN or the power of two above
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < HIDDEN
    values = tl.load(residual_ptr + row * residual_stride + offs, mask, 0.0)  # (BLOCK)
    if x_ptr is not None:
        values = (values.to(tl.float32) + tl.load(x_ptr + row * x_stride + offs, mask, 0.0)).to(values.dtype)
        tl.store(residual_ptr + row * residual_stride + offs, values, mask)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / HIDDEN + eps)
    normed = (wide * scale).to(values.dtype).to(tl.float32)  # rounded where the meaning rounds
    weight = tl.load(weight_ptr + offs, mask, 0.0)
    tl.store(out_ptr + row * HIDDEN + offs, normed * weight, mask)


def add_rms_norm(
    x: Tensor,  # [tokens, hidden]
    residual: Tensor,  # [tokens, hidden], x is added to it in place
    weight: Tensor,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    assert len(x) == len(residual), f"{len(x)} rows are added to {len(residual)}"
    assert_rows("x", x, residual.shape[1])
    return _launch(x, residual, weight, eps)


def rms_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return _launch(None, x, weight, eps)


def _launch(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    num_tokens, hidden = residual.shape
    assert_rows("the residual stream", residual, hidden)
    assert_packed("weight", weight, hidden)
    out = residual.new_empty(num_tokens, hidden)
    block, num_warps = row_block(hidden)
    _add_rms_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        out,
        0 if x is None else x.stride(0),
        residual.stride(0),
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=num_warps,
        **PINNED_OPTIONS,
    )
    return out


def _compiled(hidden: int, adds: bool) -> Compiled:
    block, num_warps = row_block(hidden)
    pointers = {"residual_ptr": "*bf16", "weight_ptr": "*bf16", "out_ptr": "*bf16"}
    shape = {"HIDDEN": hidden, "BLOCK": block}
    return Compiled(
        name=f"{'add_' if adds else ''}rms_norm bf16 {hidden}",
        kernel=_add_rms_norm_kernel,
        types=pointers
        | {"x_stride": "i32", "residual_stride": "i32", "eps": "fp32"}
        | ({"x_ptr": "*bf16"} if adds else {}),
        constexprs=shape if adds else shape | {"x_ptr": None},
        num_warps=num_warps,
        aligned=("x_stride", "residual_stride"),
    )


# Of 8B and 70B models, and of a width that is no power of two.
COMPILED = tuple(_compiled(hidden, adds) for hidden in (4096, 8192, 5120) for adds in (True, False))
