"""Norm and rotate queries and keys in place, then store keys and values in their slots of the pool.

    rotated = x · cos + roll(x, dims / 2) · sin        over a head's first dims; sin carries the minus of its first half

A slot is block · block_size + offset. One call per layer, over the packed projection [q | k | v]. Where positions are
not rotary, only the second half is done. A pool of fp8 keeps fp8(clamp(x / scale)): what is beyond its largest number
becomes that number. Eight bits with an exponent are as exact at 0.02 as at 448, so that most models need no scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.add_rms_norm import rms_norm_heads


def rope_kv_write(
    qkv: Tensor,  # [tokens, q_heads + 2 · kv_heads, head_dim], q and k are rotated in place
    cos: Tensor,  # [tokens, 1, dims], dims <= head_dim: what lies behind is left as it is
    sin: Tensor,  # [tokens, 1, dims]
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim] of qkv's dtype, written
    slots: Tensor,  # [tokens] int64
    *,
    norm: Tensor | None = None,  # [q_heads + kv_heads, head_dim]: heads are normed before they turn
    eps: float = 0.0,
) -> None:
    _norm_and_rotate(qkv, cos, sin, norm, eps, kv.shape[1])
    kv_write(qkv, kv, slots)


def kv_write(
    qkv: Tensor,  # [tokens, q_heads + 2 · kv_heads, head_dim]
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim] of qkv's dtype, written
    slots: Tensor,  # [tokens] int64
) -> None:
    kv_heads, head_dim = kv.shape[1], kv.shape[4]
    new = qkv[:, -2 * kv_heads :].view(-1, 2, kv_heads, head_dim)
    kv.flatten(2, 3).index_copy_(2, slots, new.permute(1, 2, 0, 3))


def rope_kv_write_fp8(
    qkv: Tensor,  # [tokens, q_heads + 2 · kv_heads, head_dim], q and k are rotated in place
    cos: Tensor,  # [tokens, 1, dims]
    sin: Tensor,  # [tokens, 1, dims]
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim] fp8, written
    slots: Tensor,  # [tokens] int64
    *,
    scales: Tensor | None = None,  # [2, kv_heads] fp32, by which what is stored is divided
    norm: Tensor | None = None,  # [q_heads + kv_heads, head_dim]: heads are normed before they turn
    eps: float = 0.0,
) -> None:
    _norm_and_rotate(qkv, cos, sin, norm, eps, kv.shape[1])
    kv_write_fp8(qkv, kv, slots, scales=scales)


def kv_write_fp8(
    qkv: Tensor,  # [tokens, q_heads + 2 · kv_heads, head_dim]
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim] fp8, written
    slots: Tensor,  # [tokens] int64
    *,
    scales: Tensor | None = None,  # [2, kv_heads] fp32, by which what is stored is divided
) -> None:
    new, largest = qkv[:, -2 * kv.shape[1] :].float(), torch.finfo(kv.dtype).max
    if scales is not None:
        new = new / scales.view(-1, 1)
    # As bytes: torch copies no fp8 by indices.
    kv_write(new.clamp(-largest, largest).to(kv.dtype).view(torch.uint8), kv.view(torch.uint8), slots)


def _norm_and_rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, norm: Tensor | None, eps: float, kv_heads: int
) -> None:
    if norm is not None:
        rms_norm_heads(qkv[:, :-kv_heads], norm, eps)
    rotated, dims = qkv[:, :-kv_heads], cos.shape[2]
    if dims < rotated.shape[2]:
        rotated = rotated[:, :, :dims]
    rolled = rotated.roll(dims // 2, -1)
    rotated.mul_(cos).addcmul_(rolled, sin)
