"""Penalties on tokens that have occurred, in place, as `kernels/penalize.py` means them; and a note of what was drawn.

    repetition   x -> x / s where x > 0, else x · s             s: the row's penalty where it occurred, else 1
    frequency    x -> x - frequency · (how often it was generated)
    presence     x -> x - presence · (was it generated)

Rows that have penalties hold a line of a matrix as wide as the vocabulary each, the others none. An element is read
and written once. The products may be fused with the differences, which a CPU rounds by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled

_BLOCK = 2048  # logits of a program: four vectors of 16 bytes for each of 128 threads


@dataclass(frozen=True, slots=True)
class PenaltyRows:
    """Columns and matrices on the device that outlive a step."""

    scale_lines: Tensor  # [rows] int32, -1: no repetition penalty
    scales: Tensor  # [lines, vocabulary] fp32, over 0
    repetition: Tensor  # [rows] fp32, what the scale of a drawn token becomes
    count_lines: Tensor  # [rows] int32, -1: neither of the others
    counts: Tensor  # [lines, vocabulary] fp32
    frequency: Tensor  # [rows] fp32
    presence: Tensor  # [rows] fp32


@triton.jit
def _penalize_kernel(
    logits_ptr,  # [rows, vocab_size] fp32, written
    scale_lines_ptr,  # [rows] int32
    scales_ptr,  # [lines, vocab_size] fp32
    count_lines_ptr,  # [rows] int32
    counts_ptr,  # [lines, vocab_size] fp32
    frequency_ptr,  # [rows] fp32
    presence_ptr,  # [rows] fp32
    row_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale_line = tl.load(scale_lines_ptr + row).to(tl.int64)
    count_line = tl.load(count_lines_ptr + row).to(tl.int64)
    if (scale_line >= 0) | (count_line >= 0):
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = ids < vocab_size
        logit_ptrs = logits_ptr + row * row_stride + ids
        x = tl.load(logit_ptrs, mask, 0.0)  # (BLOCK)
        if scale_line >= 0:
            scales = tl.load(scales_ptr + scale_line * vocab_size + ids, mask, 1.0)
            x = tl.where(x > 0.0, tl.div_rn(x, scales), x * scales)
        if count_line >= 0:
            counts = tl.load(counts_ptr + count_line * vocab_size + ids, mask, 0.0)
            x -= counts * tl.load(frequency_ptr + row)
            x -= tl.minimum(counts, 1.0) * tl.load(presence_ptr + row)
        tl.store(logit_ptrs, x, mask)


@triton.jit
def _remember_kernel(
    token_ids_ptr,  # [rows]
    scale_lines_ptr,  # [rows] int32
    scales_ptr,  # [lines, vocab_size] fp32, written
    repetition_ptr,  # [rows] fp32
    count_lines_ptr,  # [rows] int32
    counts_ptr,  # [lines, vocab_size] fp32, written
    vocab_size,
):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(token_ids_ptr + row)
    scale_line = tl.load(scale_lines_ptr + row).to(tl.int64)
    count_line = tl.load(count_lines_ptr + row).to(tl.int64)
    tl.store(scales_ptr + scale_line * vocab_size + token, tl.load(repetition_ptr + row), scale_line >= 0)
    count_ptr = counts_ptr + count_line * vocab_size + token
    tl.store(count_ptr, tl.load(count_ptr, count_line >= 0, 0.0) + 1.0, count_line >= 0)


def penalize(
    logits: Tensor,  # [rows, vocabulary] fp32, written
    rows: PenaltyRows,
) -> None:
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1, "logits must be fp32, a row in one piece"
    _check(rows, num_rows, vocab_size)
    if num_rows:
        _penalize_kernel[(num_rows, triton.cdiv(vocab_size, _BLOCK))](
            logits,
            rows.scale_lines,
            rows.scales,
            rows.count_lines,
            rows.counts,
            rows.frequency,
            rows.presence,
            logits.stride(0),
            vocab_size,
            _BLOCK,
            **PINNED_OPTIONS,
        )


def remember_drawn(
    token_ids: Tensor,  # [rows] int32 or int64
    rows: PenaltyRows,  # whose matrices are written
) -> None:
    num_rows, vocab_size = len(token_ids), rows.scales.shape[1]
    assert token_ids.is_contiguous()
    _check(rows, num_rows, vocab_size)
    if num_rows:
        _remember_kernel[(num_rows,)](
            token_ids,
            rows.scale_lines,
            rows.scales,
            rows.repetition,
            rows.count_lines,
            rows.counts,
            vocab_size,
            num_warps=1,
            **PINNED_OPTIONS,
        )


def _check(rows: PenaltyRows, num_rows: int, vocab_size: int) -> None:
    for matrix in (rows.scales, rows.counts):
        assert matrix.shape[1] == vocab_size and matrix.is_contiguous() and matrix.dtype == torch.float32
    for lines in (rows.scale_lines, rows.count_lines):
        assert len(lines) >= num_rows and lines.dtype == torch.int32, "a line or -1 is needed for each row"


_TYPES = {
    "scale_lines_ptr": "*i32",
    "scales_ptr": "*fp32",
    "count_lines_ptr": "*i32",
    "counts_ptr": "*fp32",
    "vocab_size": "i32",
}

COMPILED = (
    Compiled(
        name="penalize",
        kernel=_penalize_kernel,
        types=_TYPES
        | {"logits_ptr": "*fp32", "frequency_ptr": "*fp32", "presence_ptr": "*fp32", "row_stride": "i32"},
        constexprs={"BLOCK": _BLOCK},
        aligned=("row_stride", "vocab_size"),
    ),
    Compiled(
        name="penalize: what was drawn",
        kernel=_remember_kernel,
        types=_TYPES | {"token_ids_ptr": "*i64", "repetition_ptr": "*fp32"},
        num_warps=1,
        aligned=("vocab_size",),
    ),
)
