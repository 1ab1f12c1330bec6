"""y = x Wᵀ + b with bits that depend on the row alone, as `kernels/deterministic_linear.py` promises; also of fp8 rows.

    y[t, n] = scale[t] · scale[n] · Σ_k x[t, k] W[n, k] + b[n]        scales with fp8 only

A library picks its tiles, and with them the order of every sum, by the number of rows. Here each element of y is one
sum over the features in ascending order, in fp32, made by the same instruction for any number of rows: one tile, no
split of the features. Rows past the last one are zeros. Programs walk the tiles in groups of a few rows of tiles, so
that those at work at a time share what they read in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import MANY_ROWS, PINNED_OPTIONS, TARGETS, Compiled
from kernels.gpu.fp8_types import E4M3, E4M3_FNUZ


@dataclass(frozen=True, slots=True)
class Tile:
    rows: int
    outputs: int
    features: int  # of a step
    num_warps: int
    num_stages: int

    @property
    def constexprs(self) -> dict[str, int]:
        return {"BLOCK_M": self.rows, "BLOCK_N": self.outputs, "BLOCK_K": self.features, "GROUP": _GROUP}


_GROUP = 8  # rows of tiles that are worked on together
# On sm_90 two groups of four warps multiply 64 rows each, two programs to a processor. Compiled, never run.
TILE = Tile(rows=128, outputs=128, features=64, num_warps=8, num_stages=3)
FP32_TILE = Tile(rows=64, outputs=64, features=32, num_warps=8, num_stages=3)  # without tensor cores
FP8_TILE = Tile(rows=128, outputs=128, features=128, num_warps=8, num_stages=3)


@triton.jit
def tile_of_program(tiles_m, tiles_n, GROUP: tl.constexpr):
    """The row and the column of this program's tile: down the rows of tiles of a group, then across."""
    program = tl.program_id(0)
    first_m = program // (GROUP * tiles_n) * GROUP
    group_m = tl.minimum(tiles_m - first_m, GROUP)
    place = program % (GROUP * tiles_n)
    return first_m + place % group_m, place // group_m


@triton.jit
def sums_of_products(
    x_ptrs,  # (BLOCK_M, BLOCK_K), of the first features
    weight_ptrs,  # (BLOCK_K, BLOCK_N)
    mask_m,
    mask_n,
    num_features,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_K divides the features
    FP8: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) fp32, over the features in ascending order."""
    offs_k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, num_features, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptrs, mask_m[:, None], 0.0)  # (BLOCK_M, BLOCK_K)
            weight = tl.load(weight_ptrs, mask_n[None, :], 0.0)  # (BLOCK_K, BLOCK_N)
        else:
            rest = num_features - begin
            x = tl.load(x_ptrs, mask_m[:, None] & (offs_k[None, :] < rest), 0.0)
            weight = tl.load(weight_ptrs, mask_n[None, :] & (offs_k[:, None] < rest), 0.0)
        if FP8:
            # The sums of Hopper's fp8 instruction keep few bits: here only of one step.
            sums = tl.dot(x, weight, sums, max_num_imprecise_acc=BLOCK_K)
        else:
            sums = tl.dot(x, weight, sums, input_precision="ieee")
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    return sums


@triton.jit(do_not_specialize=["num_rows"])  # one code for every number of rows
def _fixed_order_matmul_kernel(
    x_ptr,  # [rows, features]
    x_scales_ptr,  # [rows] fp32, or None
    weight_ptr,  # [outputs, features]
    weight_scales_ptr,  # [outputs] fp32, or None
    bias_ptr,  # [outputs], or None
    out_ptr,  # [rows, outputs], written
    num_rows,
    num_outputs,
    num_features,
    x_stride,  # elements from one row to the next
    weight_stride,
    out_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_K divides the features
):
    tile_m, tile_n = tile_of_program(tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_outputs, BLOCK_N), GROUP)
    offs_m, offs_n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = offs_m < num_rows, offs_n < num_outputs
    x_ptrs = x_ptr + offs_m[:, None].to(tl.int64) * x_stride + offs_k[None, :]
    weight_ptrs = weight_ptr + offs_n[None, :].to(tl.int64) * weight_stride + offs_k[:, None]
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
        sums *= tl.load(x_scales_ptr + offs_m, mask_m, 0.0)[:, None]
        sums *= tl.load(weight_scales_ptr + offs_n, mask_n, 0.0)[None, :]
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + offs_n, mask_n, 0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + offs_m[:, None].to(tl.int64) * out_stride + offs_n[None, :]
    tl.store(out_ptrs, sums.to(out_ptr.dtype.element_ty), mask_m[:, None] & mask_n[None, :])


def fixed_order_matmul(
    x: Tensor,  # [rows, features] fp32, fp16 or bf16
    weight: Tensor,  # [outputs, features], of the same dtype
    bias: Tensor | None = None,  # [outputs]
    out: Tensor | None = None,  # [rows, outputs], of any floating dtype, written
    tile: Tile | None = None,
) -> Tensor:  # [rows, outputs]
    """Rows have the same bits for one `tile` only; without one it is chosen by the dtype."""
    if tile is None:
        tile = FP32_TILE if x.dtype == torch.float32 else TILE
    out = x.new_empty(len(x), len(weight)) if out is None else out
    _launch(x, None, weight, None, bias, out, tile)
    return out


def fp8_matmul(
    x: Tensor,  # [rows, features] fp8, of `quantize_fp8.py`
    x_scales: Tensor,  # [rows, 1] fp32
    weight: Tensor,  # [outputs, features] fp8
    weight_scales: Tensor,  # [outputs, 1] fp32
    bias: Tensor | None,  # [outputs]
    out: Tensor,  # [rows, outputs], written
    tile: Tile = FP8_TILE,
) -> None:
    assert x_scales.shape == (len(x), 1) and x_scales.is_contiguous(), f"scales {tuple(x_scales.shape)}"
    assert weight_scales.shape == (len(weight), 1) and weight_scales.is_contiguous()
    _launch(x, x_scales, weight, weight_scales, bias, out, tile)


def _launch(
    x: Tensor,
    x_scales: Tensor | None,
    weight: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    tile: Tile,
) -> None:
    (num_rows, num_features), num_outputs = x.shape, len(weight)
    assert weight.shape == (num_outputs, num_features), f"weight {tuple(weight.shape)} for x {tuple(x.shape)}"
    assert out.shape == (num_rows, num_outputs), f"out is {tuple(out.shape)}, not {(num_rows, num_outputs)}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, the weight {weight.dtype}"
    assert x.stride(1) == weight.stride(1) == out.stride(1) == 1, "a row's elements must follow each other"
    assert bias is None or (bias.shape == (num_outputs,) and bias.is_contiguous())
    if not num_rows:
        return
    grid = (triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs),)
    _fixed_order_matmul_kernel[grid](
        x,
        x_scales,
        weight,
        weight_scales,
        bias,
        out,
        num_rows,
        num_outputs,
        num_features,
        x.stride(0),
        weight.stride(0),
        out.stride(0),
        **tile.constexprs,
        EVEN=num_features % tile.features == 0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **PINNED_OPTIONS,
    )


_SIZES = ("num_rows", "num_outputs", "num_features", "x_stride", "weight_stride", "out_stride")


def compiled(
    name: str,
    dtype: str,
    tile: Tile,
    instructions: Mapping[str, str] | None,
    out_dtype: str | None = None,
    targets: tuple[str, ...] = tuple(TARGETS),
) -> Compiled:
    """`out_dtype`: another than the operands', which then have scales."""
    pointers = {"x_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}", "out_ptr": f"*{out_dtype or dtype}"}
    scales = ("x_scales_ptr", "weight_scales_ptr")
    return Compiled(
        name=name,
        kernel=_fixed_order_matmul_kernel,
        types=pointers | dict.fromkeys(_SIZES, "i32") | (dict.fromkeys(scales, "*fp32") if out_dtype else {}),
        constexprs={
            **tile.constexprs,
            **({} if out_dtype else dict.fromkeys(scales)),
            "bias_ptr": None,
            "EVEN": True,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        aligned=_SIZES[1:],
        instructions=instructions,
        targets=targets,
    )


FP8_INSTRUCTIONS = {"sm_90": "QGMMA", "sm_100": "UTCQMMA", "gfx942": "MFMA"}

COMPILED = (
    compiled("fixed_order_matmul bf16", "bf16", TILE, MANY_ROWS),
    compiled("fixed_order_matmul fp32", "fp32", FP32_TILE, None, targets=("sm_80", "sm_90", "sm_100")),
    compiled("fp8_matmul e4m3", E4M3.name, FP8_TILE, FP8_INSTRUCTIONS, "bf16", E4M3.targets),
    compiled("fp8_matmul e4m3fnuz", E4M3_FNUZ.name, FP8_TILE, FP8_INSTRUCTIONS, "bf16", E4M3_FNUZ.targets),
)
