"""residual += x;  y = (residual - mean) / sqrt(variance + eps) · weight + bias, as `kernels/layer_norm.py` means it.

One program a row, which it reads once and keeps: a row's bits do not depend on the others. Statistics are fp32, and
the variance is that of the differences from the mean, so that a large mean costs no digits.
"""

from __future__ import annotations

from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows, row_block


@triton.jit
def _add_layer_norm_kernel(
    x_ptr,  # [tokens, HIDDEN], or None: nothing is added
    residual_ptr,  # [tokens, HIDDEN], written where x is added
    weight_ptr,  # [HIDDEN]
    bias_ptr,  # [HIDDEN], or None
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
    centred = tl.where(mask, wide - tl.sum(wide) / HIDDEN, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / HIDDEN + eps)
    y = centred * scale * tl.load(weight_ptr + offs, mask, 0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + offs, y, mask)


def add_layer_norm(
    x: Tensor,  # [tokens, hidden]
    residual: Tensor,  # [tokens, hidden], x is added to it in place
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    assert len(x) == len(residual), f"{len(x)} rows are added to {len(residual)}"
    assert_rows("x", x, residual.shape[1])
    return _launch(x, residual, weight, bias, eps)


def layer_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return _launch(None, x, weight, bias, eps)


def _launch(x: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    num_tokens, hidden = residual.shape
    assert_rows("the residual stream", residual, hidden)
    assert_packed("weight", weight, hidden)
    if bias is not None:
        assert_packed("bias", bias, hidden)
    out = residual.new_empty(num_tokens, hidden)
    block, num_warps = row_block(hidden)
    _add_layer_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        bias,
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


def _compiled(hidden: int, biased: bool, adds: bool) -> Compiled:
    block, num_warps = row_block(hidden)
    pointers = dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16")
    absent = [name for name, is_given in {"x_ptr": adds, "bias_ptr": biased}.items() if not is_given]
    types = pointers | {"x_stride": "i32", "residual_stride": "i32", "eps": "fp32"}
    return Compiled(
        name=f"{'add_' if adds else ''}layer_norm bf16 {hidden}{' bias' if biased else ''}",
        kernel=_add_layer_norm_kernel,
        types={name: kind for name, kind in types.items() if name not in absent},
        constexprs={"HIDDEN": hidden, "BLOCK": block} | dict.fromkeys(absent),
        num_warps=num_warps,
        aligned=("x_stride", "residual_stride"),
    )


# Of GPT-2's and of MPT's width.
COMPILED = tuple(
    _compiled(*shape, adds) for shape, adds in product(((768, True), (4096, False)), (True, False))
)
