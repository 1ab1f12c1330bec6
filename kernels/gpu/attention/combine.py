"""Puts together what programs of `paged_attention.py` found in the splits of a query's keys, from the first on.

    m' = max(m, m_s)    l' = l exp(m - m') + l_s exp(m_s - m')    acc' = acc exp(m - m') + acc_s exp(m_s - m')

A split that a query does not see has m_s = -inf and changes nothing, to the bit. So a program that walks all splits by
itself, which merges with the same function, gives what programs side by side give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.plan import AttentionLaunch
from kernels.gpu.compilation import PINNED_OPTIONS

_UNROLLED = 8  # splits whose loads are in flight together: one after the other, 64 of them would take 20 µs
COMBINE_WARPS = 1


@dataclass(frozen=True, slots=True)
class Partials:
    """Scratch of a launch whose splits are computed side by side. What is read was written by the same launch."""

    sums: Tensor  # [slots, q_heads, head_dim] fp32: acc
    stats: Tensor  # [slots, q_heads, 2] fp32: m in units of log2, and l

    @staticmethod
    def allocate(num_slots: int, num_heads: int, head_dim: int, device: torch.device) -> Partials:
        sums = torch.empty(num_slots, num_heads, head_dim, dtype=torch.float32, device=device)
        return Partials(sums, sums.new_empty(num_slots, num_heads, 2))


@triton.jit
def merge_split(acc, maximum, total, split_acc, split_maximum, split_total):
    """Explicit fused products, so that no compiler rounds them one way here and another way there."""
    new_maximum = tl.maximum(maximum, split_maximum)  # (rows)
    finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    kept, added = tl.exp2(maximum - finite), tl.exp2(split_maximum - finite)
    acc = tl.fma(split_acc, added[:, None], acc * kept[:, None])  # (rows, BLOCK_D)
    return acc, new_maximum, tl.fma(split_total, added, total * kept)


@triton.jit
def combine_splits_kernel(
    sums_ptr,  # [slots, q_heads, HEAD_DIM] fp32
    stats_ptr,  # [slots, q_heads, 2] fp32
    out_ptr,  # [tokens, q_heads, HEAD_DIM], written
    tiles_ptr,  # [5, num_tiles], tiles_stride apart, as in `paged_attention.py`
    starts_ptr,  # [num_tiles], positions of the first queries
    kv_scales_ptr,  # [2, kv_heads] fp32, or None
    tiles_stride,
    num_heads,
    window,
    GROUP: tl.constexpr,  # query heads of a KV head
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM or the power of two above
    SPLIT: tl.constexpr,  # tokens
    WINDOWED: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    tile, head, query = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(tiles_ptr + 2 * tiles_stride + tile)
    if (tl.load(tiles_ptr + tile) < 0) | (query >= count):
        return
    start = tl.load(starts_ptr + tile).to(tl.int32)
    position = start + query
    first = tl.maximum(position - window + 1, 0) // SPLIT if WINDOWED else 0
    last = position // SPLIT
    if first == last:
        return  # its only split is its output already
    num_splits = (start + count - 1) // SPLIT + 1
    slot = tl.load(tiles_ptr + 3 * tiles_stride + tile) + query * num_splits
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask_d = offs_d < HEAD_DIM
    acc = tl.zeros([1, BLOCK_D], tl.float32)
    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    for begin in tl.range(first, last + 1, UNROLLED):
        for step in tl.static_range(UNROLLED):
            split = begin + step + tl.arange(0, 1)
            seen = split <= last  # (1)
            offs_slot = (slot + split).to(tl.int64) * num_heads + head
            split_maximum = tl.load(stats_ptr + offs_slot * 2, seen, float("-inf"))
            split_total = tl.load(stats_ptr + offs_slot * 2 + 1, seen, 0.0)
            offs_acc = (offs_slot * HEAD_DIM)[:, None] + offs_d
            split_acc = tl.load(sums_ptr + offs_acc, seen[:, None] & mask_d, 0.0)  # (1, BLOCK_D)
            acc, maximum, total = merge_split(acc, maximum, total, split_acc, split_maximum, split_total)
    out = acc / total[:, None]
    if kv_scales_ptr is not None:
        out *= tl.load(kv_scales_ptr + num_heads // GROUP + head // GROUP)
    token = (tl.load(tiles_ptr + tiles_stride + tile) + query).to(tl.int64)
    tl.store(out_ptr + (token * num_heads + head) * HEAD_DIM + offs_d, out, mask_d)


def combine_splits(
    partials: Partials,
    out: Tensor,  # [tokens, q_heads, head_dim], written where a query sees more than one split
    tiles: Tensor,  # [TILE_NUMBERS, num_tiles or more] int32, of the launch
    starts: Tensor,  # [num_tiles], positions of the first queries
    launch: AttentionLaunch,
    group: int,
    window: int | None,
    kv_scales: Tensor | None,  # [2, kv_heads] fp32
) -> None:
    """Behind the launch that wrote `partials`."""
    num_heads, head_dim = out.shape[1:]
    combine_splits_kernel[(launch.num_tiles, num_heads, launch.max_queries)](
        partials.sums,
        partials.stats,
        out,
        tiles,
        starts,
        kv_scales,
        tiles.stride(0),
        num_heads,
        window or 0,
        **combine_constants(launch.shape.split_tokens, group, head_dim, window is not None),
        num_warps=COMBINE_WARPS,
        **PINNED_OPTIONS,
    )


def combine_constants(split_tokens: int, group: int, head_dim: int, windowed: bool) -> dict[str, Any]:
    """Which kernel is compiled."""
    return {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "SPLIT": split_tokens,
        "WINDOWED": windowed,
        "UNROLLED": _UNROLLED,
    }
