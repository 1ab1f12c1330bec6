"""The pairs (token, choice) of a step sorted by expert, cut into tiles of one expert each for `grouped_matmul.py`.

    order = the pairs' numbers, token · num_chosen + choice, by expert and then ascending: a place for each pair
    tiles = (expert, first place, end of the expert's places) for each TILE_ROWS places of an expert, and -1 behind them

One program an expert. It counts the pairs of all experts, so that it knows where its own begin, and then puts them
there: no program waits for another, nothing is added up in an order that may differ, and the host never looks. As many
tiles as there can be at most are launched; a matmul's programs of those that are not there end at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

_BLOCK = 2048  # pairs that are looked at together: all those of 256 tokens with 8 experts each
_WARPS = 8


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])  # one code for every number of tokens
def _sort_by_expert_kernel(
    chosen_ptr,  # [num_pairs] int32 or int64
    order_ptr,  # [num_pairs] int32, written
    tiles_ptr,  # [3, num_tiles] int32, written
    num_pairs,
    num_tiles,
    TILE_ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,  # the power of two above the number of experts
    BLOCK: tl.constexpr,
):
    expert, offs, ids = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, EXPERTS)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for begin in range(0, num_pairs, BLOCK):
        mask = begin + offs < num_pairs
        counts += tl.histogram(tl.load(chosen_ptr + begin + offs, mask, 0).to(tl.int32), EXPERTS, mask)
    counts_of_tiles = (counts + TILE_ROWS - 1) // TILE_ROWS
    first, first_tile = _sum_before(counts, ids, expert), _sum_before(counts_of_tiles, ids, expert)
    end, end_tile = _sum_before(counts, ids, expert + 1), _sum_before(counts_of_tiles, ids, expert + 1)
    # The last program marks what is left over.
    last_tile = tl.where(expert == tl.num_programs(0) - 1, num_tiles, end_tile)
    for begin in range(first_tile, last_tile, EXPERTS):
        tile = begin + ids
        mask = tile < last_tile
        tl.store(tiles_ptr + tile, tl.where(tile < end_tile, expert, -1), mask)
        tl.store(tiles_ptr + num_tiles + tile, first + (tile - first_tile) * TILE_ROWS, mask)
        tl.store(tiles_ptr + 2 * num_tiles + tile, tl.zeros_like(tile) + end, mask)
    for begin in range(0, num_pairs, BLOCK):
        own = tl.load(chosen_ptr + begin + offs, begin + offs < num_pairs, -1).to(tl.int32) == expert
        ranks = tl.cumsum(own.to(tl.int32), 0)  # from 1 on
        tl.store(order_ptr + first + ranks - 1, begin + offs, own)
        first += tl.sum(own.to(tl.int32), 0)


@triton.jit
def _sum_before(counts, ids, expert):  # (EXPERTS) int32 -> int32
    return tl.sum(tl.where(ids < expert, counts, 0), 0)


@dataclass(frozen=True, slots=True)
class SortedPairs:
    order: Tensor  # [pairs] int32
    tiles: Tensor  # [3, tiles] int32
    tile_rows: int
    num_chosen: int


def sort_by_expert(
    chosen: Tensor,  # [tokens, num_chosen] int32 or int64, each below num_experts
    num_experts: int,
    tile_rows: int,
) -> SortedPairs:
    assert_packed("the choices", chosen, *chosen.shape)
    num_pairs = chosen.numel()
    # Every pair alone in a tile; or each expert's last tile as good as empty.
    num_tiles = min(num_pairs, num_pairs // tile_rows + num_experts)
    order = torch.empty(num_pairs, dtype=torch.int32, device=chosen.device)
    tiles = torch.empty(3, num_tiles, dtype=torch.int32, device=chosen.device)
    if num_pairs:
        _sort_by_expert_kernel[(num_experts,)](
            chosen,
            order,
            tiles,
            num_pairs,
            num_tiles,
            **_constexprs(num_experts, tile_rows),
            num_warps=_WARPS,
            **PINNED_OPTIONS,
        )
    return SortedPairs(order, tiles, tile_rows, chosen.shape[1])


def _constexprs(num_experts: int, tile_rows: int) -> dict[str, Any]:
    return {"TILE_ROWS": tile_rows, "EXPERTS": triton.next_power_of_2(num_experts), "BLOCK": _BLOCK}


COMPILED = tuple(
    Compiled(
        name=f"sort_by_expert {num_experts}, tiles of {tile_rows}",
        kernel=_sort_by_expert_kernel,
        types={
            "chosen_ptr": "*i32",
            "order_ptr": "*i32",
            "tiles_ptr": "*i32",
            "num_pairs": "i32",
            "num_tiles": "i32",
        },
        constexprs=_constexprs(num_experts, tile_rows),
        num_warps=_WARPS,
    )
    for num_experts, tile_rows in ((8, 128), (128, 16))
)
