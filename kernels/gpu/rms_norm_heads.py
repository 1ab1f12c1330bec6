"""Each head by itself, in place: y = x / sqrt(mean(x²) + eps) · weight, as `kernels/add_rms_norm.py` means it.

For layers whose norm is not done by `rope_kv_write.py` in the same launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

_TILE = 2048  # elements of a program: 16 for each of 128 threads


@triton.jit
def _rms_norm_heads_kernel(
    heads_ptr,  # [tokens, num_heads, HEAD_DIM], normed in place
    weight_ptr,  # [num_heads, HEAD_DIM]
    token_stride,  # elements from one token to the next
    num_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,  # of a program
    BLOCK: tl.constexpr,  # HEAD_DIM or the power of two above
):
    token = tl.program_id(0).to(tl.int64)
    offs_head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    offs_dim = tl.arange(0, BLOCK)[None, :]
    mask = (offs_head < num_heads) & (offs_dim < HEAD_DIM)
    offs = offs_head * HEAD_DIM + offs_dim
    head_ptrs = heads_ptr + token * token_stride + offs
    values = tl.load(head_ptrs, mask, 0.0)  # (HEADS, BLOCK)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / HEAD_DIM + eps)
    normed = (wide * scale[:, None]).to(values.dtype).to(tl.float32)  # rounded where the meaning rounds
    tl.store(head_ptrs, normed * tl.load(weight_ptr + offs, mask, 0.0), mask)


def rms_norm_heads(
    heads: Tensor,  # [tokens, heads, head_dim], normed in place; the first heads of a packed projection
    weight: Tensor,  # [heads, head_dim]
    eps: float,
) -> None:
    num_tokens, num_heads, head_dim = heads.shape
    assert_packed("weight", weight, num_heads, head_dim)
    assert heads.stride()[1:] == (head_dim, 1), "a token's heads must follow each other"
    tile = _tile(num_heads, head_dim)
    _rms_norm_heads_kernel[(num_tokens, triton.cdiv(num_heads, tile["HEADS"]))](
        heads, weight, heads.stride(0), num_heads, eps, **tile, **PINNED_OPTIONS
    )


def _tile(num_heads: int, head_dim: int) -> dict[str, int]:
    block: int = triton.next_power_of_2(head_dim)
    heads = min(max(_TILE // block, 1), triton.next_power_of_2(num_heads))
    return {"HEAD_DIM": head_dim, "HEADS": heads, "BLOCK": block}


COMPILED = tuple(
    Compiled(
        name=f"rms_norm_heads bf16 {head_dim}",
        kernel=_rms_norm_heads_kernel,
        types={
            "heads_ptr": "*bf16",
            "weight_ptr": "*bf16",
            "token_stride": "i32",
            "num_heads": "i32",
            "eps": "fp32",
        },
        constexprs=_tile(40, head_dim),
        aligned=("token_stride",),
    )
    for head_dim in (128, 256)
)
