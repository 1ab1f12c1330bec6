"""Attention of a step's newest tokens over the keys and values that they see, read through block tables.

    out[t] = softmax(score(q[t], K) + mask[t]) V        per head; heads share K and V in groups

as `kernels/naive_attention.py` means it; the softmax is computed tile by tile of keys while they are read (Milakov and
Gimelshein 2018, Dao 2023). One source serves decode, prefill, chunks and suffixes behind a cached prefix: a program
takes a tile of queries of one row together with all query heads of one KV head, and walks the row's keys. The keys of a
long row are cut at fixed positions; see `combine.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention.combine import Partials, combine_splits
from kernels.gpu.attention.plan import AttentionLaunch, AttentionShape
from kernels.gpu.attention.tiles import attend_range, walk_splits
from kernels.gpu.compilation import PINNED_OPTIONS

_LOG2_E = math.log2(math.e)
_ALL_TOKENS = 1 << 30
_LEAST_DIMS = 16  # that a product of matrices can sum over
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@triton.jit
def paged_attention_kernel(
    q_ptr,  # [tokens, q_heads, HEAD_DIM], tokens q_stride apart
    k_ptr,  # [blocks, kv_heads, BLOCK_SIZE, HEAD_DIM], blocks block_stride apart
    v_ptr,
    out_ptr,  # [tokens, q_heads, HEAD_DIM], written
    tables_ptr,  # [rows, blocks], rows table_stride apart
    tiles_ptr,  # [5, num_tiles], tiles_stride apart: row, first token, queries, first slot of partial results, start
    starts_ptr,  # [num_tiles], positions of the first queries
    slopes_ptr,  # [q_heads] fp32, or None
    kv_scales_ptr,  # [2, kv_heads] fp32, or None
    sums_ptr,  # [slots, q_heads, HEAD_DIM] fp32, written for queries that several programs compute
    stats_ptr,  # [slots, q_heads, 2] fp32, written
    q_stride,
    block_stride,
    table_stride,
    tiles_stride,
    program_tokens,  # keys of a program, from a multiple of it on
    window,
    score_scale,
    bias_scale,
    cap,
    GROUP: tl.constexpr,  # query heads of a KV head
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM or the power of two above, at least 16
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,  # tokens, at multiples of which a program cuts its keys; None: nowhere
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,  # None, "exact" or "bfloat16"
):
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1) * GROUP
    row = tl.load(tiles_ptr + tile)
    if row < 0:
        return
    first_token = tl.load(tiles_ptr + tiles_stride + tile)
    count = tl.load(tiles_ptr + 2 * tiles_stride + tile)
    start = tl.load(starts_ptr + tile).to(tl.int32)
    last_position = start + count - 1
    first_key = tl.maximum(start - window + 1, 0) if WINDOWED else 0
    part_begin, part_end = part * program_tokens, (part + 1) * program_tokens
    begin = tl.maximum(first_key // BLOCK_N * BLOCK_N, part_begin)
    end = tl.minimum(last_position + 1, part_end)
    if begin >= end:
        return
    offs_m, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)[None, :]
    offs_query = offs_m // GROUP
    heads = kv_head * GROUP + offs_m % GROUP
    positions = start + offs_query
    tokens = (first_token + offs_query).to(tl.int64)
    mask_m, mask_d = offs_query < count, offs_d < HEAD_DIM
    offs_q = (tokens * q_stride + heads * HEAD_DIM)[:, None] + offs_d
    q = tl.load(q_ptr + offs_q, mask_m[:, None] & mask_d, 0.0)  # (BLOCK_M, BLOCK_D)
    slopes = positions if ALIBI is None else tl.load(slopes_ptr + heads)
    if kv_scales_ptr is not None:
        score_scale *= tl.load(kv_scales_ptr + kv_head)
    offs_head = kv_head.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    table_ptr = tables_ptr + row.to(tl.int64) * table_stride
    queries = (q, positions, slopes)
    pool = (k_ptr + offs_head, v_ptr + offs_head, table_ptr, block_stride)
    scoring = (score_scale, bias_scale, cap)
    seen = (first_key, start, last_position, window)
    if SPLIT is None:
        acc, maximum, total = attend_range(
            queries, pool, scoring, seen, begin, end, HEAD_DIM, BLOCK_SIZE, BLOCK_N, WINDOWED, CAPPED, ALIBI
        )
    else:
        acc, maximum, total = walk_splits(
            queries, pool, scoring, seen, begin, end,
            HEAD_DIM, BLOCK_SIZE, BLOCK_N, SPLIT, WINDOWED, CAPPED, ALIBI,
        )  # fmt: skip
    first_keys = tl.maximum(positions - window + 1, 0) if WINDOWED else tl.zeros_like(positions)
    mask_out = mask_m & (first_keys >= part_begin) & (positions < part_end)  # no other program computes them
    if last_position >= program_tokens:
        mask_partial = mask_m & (mask_out == 0) & (first_keys < part_end) & (positions >= part_begin)
        num_parts = last_position // program_tokens + 1
        slots = tl.load(tiles_ptr + 3 * tiles_stride + tile) + offs_query * num_parts + part
        offs_slot = slots.to(tl.int64) * num_heads + heads
        tl.store(sums_ptr + (offs_slot * HEAD_DIM)[:, None] + offs_d, acc, mask_partial[:, None] & mask_d)
        tl.store(stats_ptr + offs_slot * 2, maximum, mask_partial)
        tl.store(stats_ptr + offs_slot * 2 + 1, total, mask_partial)
    out = acc / tl.where(mask_out, total, 1.0)[:, None]
    if kv_scales_ptr is not None:
        out *= tl.load(kv_scales_ptr + tl.num_programs(1) + kv_head)
    offs_out = (tokens * num_heads + heads) * HEAD_DIM
    tl.store(out_ptr + offs_out[:, None] + offs_d, out, mask_out[:, None] & mask_d)


def paged_attention(
    variant: AttentionVariant,
    slopes: Tensor | None,  # [q_heads] fp32, see `slopes_of`
    q: Tensor,  # [tokens, q_heads, head_dim], tokens may be any distance apart
    kv: Tensor,  # [2, blocks, kv_heads, block_size, head_dim], q's dtype or 8 bits
    block_tables: Tensor,  # [rows, blocks] int32
    tiles: Tensor,  # [TILE_NUMBERS, num_tiles or more] int32, of the launch
    launch: AttentionLaunch,
    out: Tensor,  # [tokens, q_heads, head_dim], written where the tiles' tokens are
    partials: Partials,
    kv_scales: Tensor | None = None,  # [2, kv_heads] fp32: stored keys and values are multiplied with them
) -> None:
    """Allocates nothing and looks at no value on the device: a graph may capture it."""
    _check(q, kv, block_tables, tiles, out)
    assert (slopes is None) == (variant.alibi_slopes is None), "slopes belong to a variant that has them"
    num_heads, head_dim = q.shape[1:]
    kv_heads, block_size = kv.shape[2:4]
    group, shape = num_heads // kv_heads, launch.shape
    starts = tiles[-1]
    k, v = kv.unbind()
    paged_attention_kernel[(launch.num_tiles, kv_heads, launch.num_splits)](
        q,
        k,
        v,
        out,
        block_tables,
        tiles,
        starts,
        slopes,
        kv_scales,
        partials.sums,
        partials.stats,
        q.stride(0),
        kv.stride(1),
        block_tables.stride(0),
        tiles.stride(0),
        shape.split_tokens if launch.num_splits > 1 else _ALL_TOKENS,
        variant.window or 0,
        *_scoring(variant),
        **constants(variant, shape, launch.walked, group, head_dim, block_size),
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
        **PINNED_OPTIONS,
    )
    if launch.num_splits > 1:
        combine_splits(partials, out, tiles, starts, launch, group, variant.window, kv_scales)


def constants(
    variant: AttentionVariant,
    shape: AttentionShape,
    walked: bool,
    group: int,
    head_dim: int,
    block_size: int,
) -> dict[str, Any]:
    """Which kernel is compiled."""
    return {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(triton.next_power_of_2(head_dim), _LEAST_DIMS),
        "BLOCK_SIZE": block_size,
        "BLOCK_M": shape.block_m,
        "BLOCK_N": shape.block_n,
        "SPLIT": shape.split_tokens if walked else None,
        "WINDOWED": variant.window is not None,
        "CAPPED": variant.softcap is not None,
        "ALIBI": _alibi(variant),
    }


def slopes_of(variant: AttentionVariant, device: torch.device) -> Tensor | None:
    """As the kernel takes them: rounded where the variant rounds them."""
    if variant.alibi_slopes is None:
        return None
    slopes = torch.tensor(variant.alibi_slopes, dtype=torch.float32)
    return (slopes.bfloat16().float() if variant.alibi_in_bfloat16 else slopes).to(device)


def _scoring(variant: AttentionVariant) -> tuple[float, float, float]:
    """score_scale, bias_scale and cap in units of log2."""
    bias_scale = variant.scale * _LOG2_E if variant.alibi_in_bfloat16 else _LOG2_E
    if variant.softcap is None:
        return variant.scale * _LOG2_E, bias_scale, 0.0
    return 2 * variant.scale / variant.softcap * _LOG2_E, bias_scale, variant.softcap * _LOG2_E


def _alibi(variant: AttentionVariant) -> str | None:
    if variant.alibi_slopes is None:
        return None
    return "bfloat16" if variant.alibi_in_bfloat16 else "exact"


def _check(q: Tensor, kv: Tensor, block_tables: Tensor, tiles: Tensor, out: Tensor) -> None:
    num_heads, head_dim = q.shape[1:]
    kv_heads, block_size = kv.shape[2:4]
    assert num_heads % kv_heads == 0, f"{num_heads} query heads cannot share {kv_heads} KV heads"
    assert kv.shape[4] == head_dim, f"queries have {head_dim} numbers a head, keys {kv.shape[4]}"
    assert q.stride()[1:] == (head_dim, 1), "a token's heads must follow each other"
    assert kv.stride()[2:] == (block_size * head_dim, head_dim, 1), "a block must lie in one piece"
    assert kv.dtype in (q.dtype, *_EIGHT_BITS), f"keys of {kv.dtype} do not go with queries of {q.dtype}"
    assert block_tables.stride(1) == tiles.stride(1) == 1, (
        "a row of the tables or tiles must lie in one piece"
    )
    assert out.shape == q.shape and out.is_contiguous(), f"out is {tuple(out.shape)}, not {tuple(q.shape)}"
