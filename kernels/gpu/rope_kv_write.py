"""Norm and rotate queries and keys, then store keys and values in their slots, as `kernels/rope_kv_write.py` means it.

    rotated = x · cos + roll(x, dims / 2) · sin        over a head's first dims; sin carries the minus of its first half

One launch a layer, over the packed projection [q | k | v]. Queries are written back in place, rotated keys only to the
pool, whose layout is a GPU's: one block of one head lies in one piece. Where scales are given, what an fp8 pool stores
is divided by its head's first. A program takes some heads of one token, and a pair of numbers that turns into each
other lies in one thread: nothing is read after another thread has overwritten it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, TARGETS, Compiled
from kernels.gpu.fp8_types import FP8_TYPES, Fp8Type
from kernels.gpu.row_block import assert_packed

_TILE = 2048  # elements of a program: two vectors of 16 bytes for each of 128 threads, in bf16
_VECTOR = 8  # of these elements


@triton.jit
def _rope_kv_write_kernel(
    qkv_ptr,  # [tokens, q_heads + 2 · kv_heads, HEAD_DIM], q is normed and rotated in place
    cos_ptr,  # [tokens, DIMS], or None
    sin_ptr,  # [tokens, DIMS], or None
    norm_ptr,  # [q_heads + kv_heads, HEAD_DIM], or None
    kv_ptr,  # [2, num_blocks, kv_heads, BLOCK_SIZE, HEAD_DIM], written
    scales_ptr,  # [2, kv_heads] fp32, or None
    slots_ptr,  # [tokens], below 0: nothing is written
    qkv_stride,  # elements from one token to the next
    turn_stride,
    values_stride,  # elements from the pool's keys to its values
    q_heads,
    kv_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,  # that turn; 0: none
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,  # that an fp8 pool can hold, beyond it lies NaN; 0: it is not fp8
    HEADS: tl.constexpr,  # of a program
    PAIRS: tl.constexpr,  # HEAD_DIM / 2 or the power of two above
    VECTOR: tl.constexpr,  # dims that lie side by side wherever a pair's halves begin
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]  # (HEADS, 1)
    is_query = head < q_heads
    is_value = head >= q_heads + kv_heads

    # The first dims / 2 pairs are those that turn, the others any of what stays.
    pair = tl.arange(0, PAIRS)[None, :]  # (1, PAIRS)
    turns = pair < DIMS // 2
    offs_first = tl.max_contiguous(
        tl.multiple_of(pair + tl.where(turns, 0, DIMS // 2), (1, VECTOR)), (1, VECTOR)
    )
    offs_second = pair + tl.where(turns, DIMS // 2, HEAD_DIM // 2)
    offs_second = tl.max_contiguous(tl.multiple_of(offs_second, (1, VECTOR)), (1, VECTOR))
    mask = (head < q_heads + 2 * kv_heads) & (pair < HEAD_DIM // 2)
    head_ptrs = qkv_ptr + token * qkv_stride + head * HEAD_DIM
    first = tl.load(head_ptrs + offs_first, mask, 0.0).to(tl.float32)  # (HEADS, PAIRS)
    second = tl.load(head_ptrs + offs_second, mask, 0.0).to(tl.float32)

    if norm_ptr is not None:
        scale = tl.rsqrt(tl.sum(first * first + second * second, 1) / HEAD_DIM + eps)[:, None]
        scale = tl.where(is_value, 1.0, scale)
        norm_ptrs = norm_ptr + head * HEAD_DIM
        first *= scale * tl.load(norm_ptrs + offs_first, mask & ~is_value, 1.0).to(tl.float32)
        second *= scale * tl.load(norm_ptrs + offs_second, mask & ~is_value, 1.0).to(tl.float32)
    if DIMS:
        cos_ptrs, sin_ptrs = cos_ptr + token * turn_stride + pair, sin_ptr + token * turn_stride + pair
        along = first * tl.load(cos_ptrs, turns, 1.0) + second * tl.load(sin_ptrs, turns, 0.0)
        across = second * tl.load(cos_ptrs + DIMS // 2, turns, 1.0)
        across += first * tl.load(sin_ptrs + DIMS // 2, turns, 0.0)
        first = tl.where(is_value, first, along)
        second = tl.where(is_value, second, across)

    tl.store(head_ptrs + offs_first, first, mask & is_query)
    tl.store(head_ptrs + offs_second, second, mask & is_query)
    mask &= ~is_query
    if LARGEST > 0.0:
        if scales_ptr is not None:
            divisor = tl.load(scales_ptr + head - q_heads, (head < q_heads + 2 * kv_heads) & ~is_query, 1.0)
            first, second = first / divisor, second / divisor
        first, second = tl.clamp(first, -LARGEST, LARGEST), tl.clamp(second, -LARGEST, LARGEST)
    block_head = slot // BLOCK_SIZE * kv_heads + head - q_heads - tl.where(is_value, kv_heads, 0)
    pool_ptrs = kv_ptr + (block_head * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM
    pool_ptrs += is_value.to(tl.int64) * values_stride
    tl.store(pool_ptrs + offs_first, first, mask)
    tl.store(pool_ptrs + offs_second, second, mask)


def rope_kv_write(
    qkv: Tensor,  # [tokens, q_heads + 2 · kv_heads, head_dim], q is normed and rotated in place
    cos: Tensor,  # [tokens, 1, dims], dims <= head_dim: what lies behind is left as it is
    sin: Tensor,  # [tokens, 1, dims]
    kv: Tensor,  # [2, num_blocks, kv_heads, block_size, head_dim], written
    slots: Tensor,  # [tokens] int32 or int64; below 0 the token is padding, of which nothing is written
    *,
    scales: Tensor | None = None,  # [2, kv_heads] fp32, by which what an fp8 pool stores is divided
    norm: Tensor | None = None,  # [q_heads + kv_heads, head_dim]: heads are normed before they turn
    eps: float = 0.0,
) -> None:
    assert cos.shape == sin.shape == (len(qkv), 1, cos.shape[2]), (
        f"{tuple(cos.shape)} and {tuple(sin.shape)} for {len(qkv)} tokens"
    )
    assert cos.stride() == sin.stride() and cos.stride(2) == 1, "cosines and sines lie alike"
    _launch(qkv, (cos, sin), kv, slots, scales, norm, eps)


def kv_write(
    qkv: Tensor,  # [tokens, q_heads + 2 · kv_heads, head_dim]
    kv: Tensor,  # [2, num_blocks, kv_heads, block_size, head_dim], written
    slots: Tensor,  # [tokens] int32 or int64; below 0 the token is padding, of which nothing is written
    *,
    scales: Tensor | None = None,  # [2, kv_heads] fp32, by which what an fp8 pool stores is divided
) -> None:
    _launch(qkv[:, -2 * kv.shape[2] :], (None, None), kv, slots, scales, None, 0.0)


def _launch(
    qkv: Tensor,
    turns: tuple[Tensor, Tensor] | tuple[None, None],
    kv: Tensor,
    slots: Tensor,
    scales: Tensor | None,
    norm: Tensor | None,
    eps: float,
) -> None:
    num_tokens, num_heads, head_dim = qkv.shape
    kv_heads, block_size = kv.shape[2:4]
    q_heads, cos = num_heads - 2 * kv_heads, turns[0]
    assert qkv.stride()[1:] == (head_dim, 1), "a token's heads must follow each other"
    assert_packed("kv", kv, 2, kv.shape[1], kv_heads, block_size, head_dim)
    assert_packed("slots", slots, num_tokens)
    if scales is not None:
        assert_packed("scales", scales, 2, kv_heads)
    if norm is not None:
        assert_packed("norm", norm, q_heads + kv_heads, head_dim)
    shape = _shape(num_heads, head_dim, 0 if cos is None else cos.shape[2], block_size, kv.dtype)
    _rope_kv_write_kernel[(num_tokens, triton.cdiv(num_heads, shape["HEADS"]))](
        qkv,
        *turns,
        norm,
        kv,
        scales,
        slots,
        qkv.stride(0),
        0 if cos is None else cos.stride(0),
        kv.stride(0),
        q_heads,
        kv_heads,
        eps,
        **shape,
        **PINNED_OPTIONS,
    )


def _shape(
    num_heads: int, head_dim: int, dims: int, block_size: int, kv_dtype: torch.dtype
) -> dict[str, float]:
    """The constexprs of a launch."""
    assert head_dim % 2 == dims % 2 == 0 and dims <= head_dim, (
        f"{dims} of {head_dim} dims cannot turn in pairs"
    )
    pairs: int = triton.next_power_of_2(head_dim // 2)
    return {
        "HEAD_DIM": head_dim,
        "DIMS": dims,
        "BLOCK_SIZE": block_size,
        "LARGEST": torch.finfo(kv_dtype).max if kv_dtype.itemsize == 1 else 0.0,
        "HEADS": min(max(_TILE // (2 * pairs), 1), triton.next_power_of_2(num_heads)),
        "PAIRS": pairs,
        "VECTOR": math.gcd(dims // 2, head_dim // 2, _VECTOR),
    }


def _compiled(
    name: str,
    dims: int = 128,
    head_dim: int = 128,
    normed: bool = False,
    fp8: Fp8Type | None = None,  # of the pool
) -> Compiled:
    pointers = dict.fromkeys(("qkv_ptr", "cos_ptr", "sin_ptr", "norm_ptr"), "*bf16")
    numbers = dict.fromkeys(("qkv_stride", "turn_stride", "q_heads", "kv_heads"), "i32")
    types = pointers | numbers | {"values_stride": "i64", "eps": "fp32"}
    types |= {"kv_ptr": f"*{fp8.name if fp8 else 'bf16'}", "scales_ptr": "*fp32", "slots_ptr": "*i64"}
    given = {"cos_ptr": dims, "sin_ptr": dims, "norm_ptr": normed, "scales_ptr": fp8}
    absent = [name for name, is_given in given.items() if not is_given]
    return Compiled(
        name=name,
        kernel=_rope_kv_write_kernel,
        types={parameter: kind for parameter, kind in types.items() if parameter not in absent},
        constexprs=_shape(48, head_dim, dims, 64, fp8.dtype if fp8 else torch.bfloat16)
        | dict.fromkeys(absent),
        aligned=("qkv_stride", "turn_stride", "values_stride"),
        targets=fp8.targets if fp8 else tuple(TARGETS),
    )


COMPILED = (
    _compiled("rope_kv_write bf16 128"),
    _compiled("rope_kv_write bf16 128 norm", normed=True),
    _compiled("rope_kv_write bf16 256 norm", dims=256, head_dim=256, normed=True),
    _compiled("rope_kv_write bf16 80, 32 turn", dims=32, head_dim=80),
    _compiled("kv_write bf16 128", dims=0),
    *(_compiled(f"rope_kv_write bf16 128 {fp8.name}", fp8=fp8) for fp8 in FP8_TYPES),
)
