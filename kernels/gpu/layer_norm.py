"""y = (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias, as `kernels/layer_norm.py` means it.

One program a row, which it reads once and keeps: a row's bits do not depend on the others. Statistics are fp32, and
the variance is that of the differences from the mean, so that a large mean costs no digits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows, row_block


@triton.jit
def _layer_norm_kernel(
    x_ptr,  # [tokens, HIDDEN]
    weight_ptr,  # [HIDDEN]
    bias_ptr,  # [HIDDEN], or None
    out_ptr,  # [tokens, HIDDEN], written
    x_stride,  # elements from one row to the next
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,  # HIDDEN or the power of two above
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < HIDDEN
    x = tl.load(x_ptr + row * x_stride + offs, mask, 0.0).to(tl.float32)  # (BLOCK)
    centred = tl.where(mask, x - tl.sum(x) / HIDDEN, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / HIDDEN + eps)
    y = centred * scale * tl.load(weight_ptr + offs, mask, 0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + offs, y, mask)


def layer_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    num_tokens, hidden = x.shape
    assert_rows("x", x, hidden)
    assert_packed("weight", weight, hidden)
    if bias is not None:
        assert_packed("bias", bias, hidden)
    out = x.new_empty(num_tokens, hidden)
    block, num_warps = row_block(hidden)
    _layer_norm_kernel[(num_tokens,)](
        x,
        weight,
        bias,
        out,
        x.stride(0),
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=num_warps,
        **PINNED_OPTIONS,
    )
    return out


def _compiled(hidden: int, biased: bool) -> Compiled:
    block, num_warps = row_block(hidden)
    constexprs = {"HIDDEN": hidden, "BLOCK": block}
    types = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "out_ptr": "*bf16", "x_stride": "i32", "eps": "fp32"}
    return Compiled(
        name=f"layer_norm bf16 {hidden}{' bias' if biased else ''}",
        kernel=_layer_norm_kernel,
        types=types | {"bias_ptr": "*bf16"} if biased else types,
        constexprs=constexprs if biased else constexprs | {"bias_ptr": None},
        num_warps=num_warps,
        aligned=("x_stride",),
    )


# Of GPT-2's and of MPT's width.
COMPILED = (_compiled(768, biased=True), _compiled(4096, biased=False))
