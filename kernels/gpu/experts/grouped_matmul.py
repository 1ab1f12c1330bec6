"""Each expert's product over the rows that chose it: y = x W_eᵀ, tile by tile of `order.py`; also of fp8 rows.

    from tokens   out[place] = W[expert] · x[order[place] // num_chosen]      hidden -> features, rows sorted by expert
    to pairs      out[order[place]] = W[expert] · x[place]                    features -> hidden, rows back in order

A step of few tokens reads the weights of min(experts, tokens · num_chosen) experts and hardly anything else: those
bytes bound it, at 16 rows an expert as at one. From about 180 rows an expert on, products do. So how many rows a tile
has goes by the rows that an expert has on average. That is a matter of the number of tokens alone: a graph has one.

Every element is one sum over the features in ascending order, in fp32: with one and the same tile a row's bits depend
neither on what is beside it nor on its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import FEW_ROWS, MANY_ROWS, PINNED_OPTIONS, TARGETS, Compiled
from kernels.gpu.experts.order import SortedPairs
from kernels.gpu.fp8_types import FP8_TYPES
from kernels.gpu.linear.fixed_order_matmul import (
    FP8_INSTRUCTIONS,
    FP8_TILE,
    FP32_TILE,
    TILE,
    Tile,
    sums_of_products,
    tile_of_program,
)
from kernels.gpu.row_block import assert_packed, assert_rows

# By the bytes of a number, with ascending rows. Compiled, never run. The 16 rows of the first leave matrix units idle:
# its steps are long and many are under way, to keep the memory busy.
TILES: Mapping[int, Sequence[Tile]] = {
    4: (FP32_TILE,),
    2: (
        Tile(rows=16, outputs=64, features=128, num_warps=4, num_stages=4),
        Tile(rows=64, outputs=128, features=64, num_warps=4, num_stages=3),
        TILE,
    ),
    1: (
        Tile(rows=16, outputs=64, features=256, num_warps=4, num_stages=4),
        Tile(rows=64, outputs=128, features=128, num_warps=4, num_stages=3),
        FP8_TILE,
    ),
}


@triton.jit(do_not_specialize=["num_tiles"])
def _experts_matmul_kernel(
    x_ptr,  # [tokens, features], or [pairs, features] by place
    x_scales_ptr,  # of its rows, fp32, or None
    weight_ptr,  # [experts, outputs, features]
    weight_scales_ptr,  # [experts, outputs] fp32, or None
    order_ptr,  # [pairs] int32
    tiles_ptr,  # [3, num_tiles] int32
    out_ptr,  # [pairs, outputs], written: by place, or by pair
    num_tiles,
    num_outputs,
    num_features,
    x_stride,  # elements from one row to the next
    NUM_CHOSEN: tl.constexpr,
    FROM_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_K divides the features
):
    tile, tile_n = tile_of_program(num_tiles, tl.cdiv(num_outputs, BLOCK_N), GROUP)
    expert = tl.load(tiles_ptr + tile)
    if expert < 0:
        return
    places = tl.load(tiles_ptr + num_tiles + tile) + tl.arange(0, BLOCK_M)
    offs_n, offs_k = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    mask_m, mask_n = places < tl.load(tiles_ptr + 2 * num_tiles + tile), offs_n < num_outputs
    pairs = tl.load(order_ptr + places, mask_m, 0)
    rows = pairs // NUM_CHOSEN if FROM_TOKENS else places
    x_ptrs = x_ptr + rows[:, None].to(tl.int64) * x_stride + offs_k[None, :]
    outputs = expert.to(tl.int64) * num_outputs + offs_n  # of all experts, one below the other
    weight_ptrs = weight_ptr + outputs[None, :] * num_features + offs_k[:, None]
    sums = sums_of_products(
        x_ptrs,
        weight_ptrs,
        mask_m,
        mask_n,
        num_features,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN,
        x_scales_ptr is not None,
    )
    if x_scales_ptr is not None:
        sums *= tl.load(x_scales_ptr + rows, mask_m, 0.0)[:, None]
        sums *= tl.load(weight_scales_ptr + outputs, mask_n, 0.0)[None, :]
    out_rows = places if FROM_TOKENS else pairs
    out_ptrs = out_ptr + out_rows[:, None].to(tl.int64) * num_outputs + offs_n[None, :]
    tl.store(out_ptrs, sums.to(out_ptr.dtype.element_ty), mask_m[:, None] & mask_n[None, :])


def tiles_of(dtype: torch.dtype, deterministic: bool) -> Sequence[Tile]:
    """`deterministic`: one for all, which wastes less on few rows than the largest."""
    tiles = TILES[dtype.itemsize]
    return tiles[:2][-1:] if deterministic else tiles


def choose_tile(tiles: Sequence[Tile], num_pairs: int, num_experts: int) -> Tile:
    """The smallest that an expert's rows fit on average, else the largest."""
    return next((tile for tile in tiles if num_pairs <= tile.rows * num_experts), tiles[-1])


def experts_matmul(
    x: Tensor,  # [tokens, features] where it is `from_tokens`, else [pairs, features], sorted by expert
    x_scales: Tensor | None,  # [tokens or pairs, 1] fp32, of fp8 rows
    weight: Tensor,  # [experts, outputs, features], of the same dtype
    weight_scales: Tensor | None,  # [experts, outputs, 1] fp32
    sorted_pairs: SortedPairs,
    tile: Tile,  # of as many rows as the pairs were sorted for
    from_tokens: bool,
    out: Tensor,  # [pairs, outputs], written: sorted by expert where it is `from_tokens`, else token by token
) -> None:
    (num_experts, num_outputs, num_features), num_pairs = weight.shape, len(sorted_pairs.order)
    num_rows = num_pairs // sorted_pairs.num_chosen if from_tokens else num_pairs
    num_tiles = sorted_pairs.tiles.shape[1]
    assert tile.rows == sorted_pairs.tile_rows, f"pairs in tiles of {sorted_pairs.tile_rows} for {tile}"
    assert len(x) == num_rows, f"{len(x)} rows, not {num_rows}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, the weights {weight.dtype}"
    assert (x_scales is None) == (weight_scales is None), "both operands have scales, or none has"
    assert_rows("x", x, num_features)
    assert_packed("the weights", weight, num_experts, num_outputs, num_features)
    assert_packed("out", out, num_pairs, num_outputs)
    if x_scales is not None and weight_scales is not None:
        assert_packed("the rows' scales", x_scales, num_rows, 1)
        assert_packed("the weights' scales", weight_scales, num_experts, num_outputs, 1)
    if not num_pairs:
        return
    _experts_matmul_kernel[(num_tiles * triton.cdiv(num_outputs, tile.outputs),)](
        x,
        x_scales,
        weight,
        weight_scales,
        sorted_pairs.order,
        sorted_pairs.tiles,
        out,
        num_tiles,
        num_outputs,
        num_features,
        x.stride(0),
        **tile.constexprs,
        NUM_CHOSEN=sorted_pairs.num_chosen,
        FROM_TOKENS=from_tokens,
        EVEN=num_features % tile.features == 0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **PINNED_OPTIONS,
    )


_SIZES = ("num_tiles", "num_outputs", "num_features", "x_stride")
_SCALES = ("x_scales_ptr", "weight_scales_ptr")


def _compiled(
    dtype: str,
    tile: Tile,
    from_tokens: bool,
    instructions: Mapping[str, str] | None,
    targets: Sequence[str],
) -> Compiled:
    has_scales = dtype.startswith("fp8")
    types = {
        "x_ptr": f"*{dtype}",
        "weight_ptr": f"*{dtype}",
        "out_ptr": "*bf16" if has_scales else f"*{dtype}",
    }
    return Compiled(
        name=f"experts_matmul {dtype} {tile.rows} rows, {'from tokens' if from_tokens else 'to pairs'}",
        kernel=_experts_matmul_kernel,
        types=types
        | dict.fromkeys(("order_ptr", "tiles_ptr"), "*i32")
        | dict.fromkeys(_SIZES, "i32")
        | (dict.fromkeys(_SCALES, "*fp32") if has_scales else {}),
        constexprs={**tile.constexprs, "NUM_CHOSEN": 8, "FROM_TOKENS": from_tokens, "EVEN": True}
        | ({} if has_scales else dict.fromkeys(_SCALES)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        aligned=_SIZES[1:],
        instructions=instructions,
        targets=tuple(targets),
    )


COMPILED = (
    *(
        _compiled(dtype, tile, from_tokens, FEW_ROWS if tile.rows < 64 else many_rows, targets)
        for dtype, num_bytes, from_tokens, many_rows, targets in (
            ("bf16", 2, True, MANY_ROWS, tuple(TARGETS)),
            ("bf16", 2, False, MANY_ROWS, tuple(TARGETS)),
            *((fp8.name, 1, False, FP8_INSTRUCTIONS, fp8.targets) for fp8 in FP8_TYPES),
        )
        for tile in TILES[num_bytes]
    ),
    _compiled("fp32", FP32_TILE, False, None, ("sm_80", "sm_90", "sm_100")),
)
