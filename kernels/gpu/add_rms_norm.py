"""residual += x;  y = residual / sqrt(mean(residual²) + eps) · weight, as `kernels/add_rms_norm.py` means it.

One program a row, which it reads once and keeps: a row's bits do not depend on the others. Statistics are fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.residual_norm import compiled_norm, launch_norm


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
    return launch_norm(_add_rms_norm_kernel, x, residual, {"weight": weight}, eps)


def rms_norm(
    x: Tensor,  # [tokens, hidden]
    weight: Tensor,  # [hidden]
    eps: float,
) -> Tensor:  # [tokens, hidden]
    return launch_norm(_add_rms_norm_kernel, None, x, {"weight": weight}, eps)


# Of 8B and 70B models, and of a width that is no power of two.
COMPILED = tuple(
    compiled_norm(f"rms_norm bf16 {hidden}", _add_rms_norm_kernel, hidden, adds, weight_ptr=True)
    for hidden in (4096, 8192, 5120)
    for adds in (True, False)
)
