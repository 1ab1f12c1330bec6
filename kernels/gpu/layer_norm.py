"""residual += x;  y = (residual - mean) / sqrt(variance + eps) · weight + bias, as `kernels/layer_norm.py` means it.

One program a row, which it reads once and keeps: a row's bits do not depend on the others. Statistics are fp32, and
the variance is that of the differences from the mean, so that a large mean costs no digits.
"""

from __future__ import annotations

from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import Compiled
from kernels.gpu.residual_norm import compiled_norm, launch_norm


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
    return launch_norm(_add_layer_norm_kernel, x, residual, {"weight": weight, "bias": bias}, eps)


def layer_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    bias: Tensor | None,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return launch_norm(_add_layer_norm_kernel, None, x, {"weight": weight, "bias": bias}, eps)


def _compiled(hidden: int, biased: bool, adds: bool) -> Compiled:
    name = f"layer_norm bf16 {hidden}{' bias' if biased else ''}"
    return compiled_norm(name, _add_layer_norm_kernel, hidden, adds, weight_ptr=True, bias_ptr=biased)


# Of GPT-2's and of MPT's width.
COMPILED = tuple(
    _compiled(*shape, adds) for shape, adds in product(((768, True), (4096, False)), (True, False))
)
