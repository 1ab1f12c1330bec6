"""The most likely token of each row; of several alike, the first. As `kernels/argmax.py` means it.

    argmax(x) = min { i : x_i = max x }

A logit and its token are packed into one integer that compares as wanted, a pair:

    pair(x, i) = key(x) · 2^31 + (2^31 - 1 - i)      key: integers in the order of the floats, NaN above all

so the best of a row is the largest of its pairs, in whatever order parts of a vocabulary are looked at: over the splits
of a row, and over the ranks that each hold a slice of the vocabulary and gather nothing but a pair a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows

SPLIT = 4096  # tokens of a program, always: so that a row is cut alike in every batch
_WARPS = 8

NO_PAIR = tl.constexpr(-(1 << 63))


@triton.jit
def pairs_of(logits, ids):  # fp32, int32 -> int64
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)  # a zero with a minus is a zero
    keys = tl.where(logits != logits, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (keys.to(tl.int64) << 31) | (ids ^ 0x7FFFFFFF)


@triton.jit
def logit_of(pair):  # int64 -> fp32
    key = (pair >> 31).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def id_of(pair):  # int64 -> int32
    return (pair & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF


@triton.jit
def best_pair(pairs_ptr, num_parts, part_stride, PARTS: tl.constexpr):  # [num_parts] int64 -> int64
    offs = tl.arange(0, PARTS)
    return tl.max(tl.load(pairs_ptr + offs * part_stride, offs < num_parts, NO_PAIR), 0)


@triton.jit
def _split_pairs_kernel(
    logits_ptr,  # [rows, vocab_size]
    pairs_ptr,  # [rows, splits] int64, written
    row_stride,
    vocab_size,
    first_id,  # of this slice of the vocabulary
    SPLIT: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = split * SPLIT + tl.arange(0, SPLIT)
    # Past the end: no more likely than any token, and behind them all.
    logits = tl.load(logits_ptr + row * row_stride + ids, ids < vocab_size, -float("inf"))  # (SPLIT)
    best = tl.max(pairs_of(logits.to(tl.float32), first_id + ids), 0)
    tl.store(pairs_ptr + row * tl.num_programs(1) + split, best)


@triton.jit
def _best_pairs_kernel(
    pairs_ptr,  # [parts, rows] int64, of any strides
    out_ptr,  # [rows], written: a pair or its token
    num_parts,
    part_stride,
    row_stride,
    PARTS: tl.constexpr,  # the power of two above `num_parts`
    TOKENS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best = best_pair(pairs_ptr + row * row_stride, num_parts, part_stride, PARTS)
    tl.store(out_ptr + row, id_of(best) if TOKENS else best)


def num_splits(vocab_size: int) -> int:
    splits: int = triton.cdiv(vocab_size, SPLIT)
    return splits


def split_pairs(
    logits: Tensor,  # [rows, vocabulary], of a whole vocabulary or of a slice that begins at `first_id`
    pairs: Tensor,  # [at least rows, splits] int64, written
    first_id: int = 0,
) -> Tensor:  # [rows, splits]: those of `pairs` that were written
    """The best of each split of each row."""
    num_rows, vocab_size = logits.shape
    splits = num_splits(vocab_size)
    assert pairs.dtype == torch.int64, f"pairs are {pairs.dtype}"
    assert len(pairs) >= num_rows, f"{len(pairs)} rows of scratch for {num_rows} rows of logits"
    assert_packed("pairs", pairs, len(pairs), splits)
    assert_rows("logits", logits, vocab_size)
    if num_rows:
        _split_pairs_kernel[(num_rows, splits)](
            logits, pairs, logits.stride(0), vocab_size, first_id, SPLIT, num_warps=_WARPS, **PINNED_OPTIONS
        )
    return pairs[:num_rows]


def best_pairs(
    pairs: Tensor,  # [rows, parts] int64, of any strides: of a row's splits, or of what the ranks have found
    out: Tensor,  # [rows] int64, written
) -> None:
    _reduce(pairs, out, tokens=False)


def best_tokens(
    pairs: Tensor,  # [rows, parts] int64, of any strides
    out: Tensor,  # [rows] int32 or int64, written
) -> None:
    _reduce(pairs, out, tokens=True)


def _reduce(pairs: Tensor, out: Tensor, tokens: bool) -> None:
    num_rows, parts = pairs.shape
    assert pairs.dtype == torch.int64, f"pairs are {pairs.dtype}"
    assert_packed("out", out, num_rows)
    if num_rows:
        padded = triton.next_power_of_2(parts)
        _best_pairs_kernel[(num_rows,)](
            pairs, out, parts, pairs.stride(1), pairs.stride(0), padded, tokens, num_warps=1, **PINNED_OPTIONS
        )


COMPILED = (
    *(
        Compiled(
            name=f"argmax of splits {dtype}",
            kernel=_split_pairs_kernel,
            types={
                "logits_ptr": f"*{dtype}",
                "pairs_ptr": "*i64",
                "row_stride": "i32",
                "vocab_size": "i32",
                "first_id": "i32",
            },
            constexprs={"SPLIT": SPLIT},
            num_warps=_WARPS,
            aligned=("row_stride", "vocab_size"),
        )
        for dtype in ("fp32", "bf16")
    ),
    Compiled(
        name="argmax of a row",
        kernel=_best_pairs_kernel,
        types={
            "pairs_ptr": "*i64",
            "out_ptr": "*i64",
            "num_parts": "i32",
            "row_stride": "i32",
        },
        constexprs={"part_stride": 1, "PARTS": 32, "TOKENS": True},
        num_warps=1,
    ),
)
