"""Penalties on tokens that have occurred, in place, and a note of what was drawn: `kernels/edited_rows.py` means them.

    repetition   x -> x / s where x > 0, else x · s          for tokens of the prompt and generated ones
    frequency    x -> x - frequency · (how often it was generated)
    presence     x -> x - presence · (was it generated)

A row's marks are read, and its logits read and written once, where it asks. The products may be fused with the
differences, which a CPU rounds by themselves.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels import edited_rows
from kernels.edited_rows import EditedRows
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed
from kernels.gpu.sampling.edit_logits import RECORD

_BLOCK = 2048  # logits of a program: four vectors of 16 bytes for each of 128 threads
_NEWEST_BLOCK = 32  # of a row's newest tokens at a time

_WISHES = tl.constexpr(edited_rows.WISHES)
_PENALIZED = tl.constexpr(edited_rows.PENALIZED)
_NUM_NEWEST = tl.constexpr(edited_rows.NUM_NEWEST)
_REPETITION = tl.constexpr(edited_rows.REPETITION)
_FREQUENCY = tl.constexpr(edited_rows.FREQUENCY)
_PRESENCE = tl.constexpr(edited_rows.PRESENCE)
_OCCURRED = tl.constexpr(~edited_rows.HELD_BACK)
_COUNTED = tl.constexpr(edited_rows.COUNTED)


@triton.jit
def _fraction(record_ptr):  # *int32 -> fp32
    return tl.load(record_ptr).to(tl.float32, bitcast=True)


@triton.jit
def _penalize_kernel(
    logits_ptr,  # [batch, vocab_size] fp32, written
    rows_ptr,  # [batch], -1: padding
    records_ptr,  # [rows, RECORD] int32
    marks_ptr,  # [rows, vocab_size] int32
    vocab_size,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + place).to(tl.int64)
    record_ptr = records_ptr + row * RECORD
    if (tl.load(record_ptr + _WISHES, row >= 0, 0) & _PENALIZED) != 0:
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = ids < vocab_size
        logit_ptrs = logits_ptr + place * vocab_size + ids
        x = tl.load(logit_ptrs, mask, 0.0)  # (BLOCK)
        marks = tl.load(marks_ptr + row * vocab_size + ids, mask, 0)
        repetition = tl.where((marks & _OCCURRED) != 0, _fraction(record_ptr + _REPETITION), 1.0)
        x = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition)
        counts = (marks & _COUNTED).to(tl.float32)
        x -= counts * _fraction(record_ptr + _FREQUENCY)
        x -= tl.minimum(counts, 1.0) * _fraction(record_ptr + _PRESENCE)
        tl.store(logit_ptrs, x, mask)


@triton.jit
def _remember_kernel(
    token_ids_ptr,  # [batch] int64
    rows_ptr,  # [batch], -1: padding
    records_ptr,  # [rows, RECORD] int32
    marks_ptr,  # [rows, vocab_size] int32, written
    addresses_ptr,  # [rows] int64: of [num_newest] int32, written
    vocab_size,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + place).to(tl.int64)
    token = tl.load(token_ids_ptr + place)
    record_ptr = records_ptr + row * RECORD
    is_counted = (tl.load(record_ptr + _WISHES, row >= 0, 0) & _PENALIZED) != 0
    tl.atomic_add(marks_ptr + row * vocab_size + token, 1, is_counted, sem="relaxed")
    num_newest = tl.load(record_ptr + _NUM_NEWEST, row >= 0, 0)
    if num_newest > 0:
        newest_ptr = tl.load(addresses_ptr + row).to(tl.pointer_type(tl.int32))
        for begin in range(0, num_newest, BLOCK):
            offs = begin + tl.arange(0, BLOCK)
            moved = tl.load(newest_ptr + offs + 1, offs < num_newest - 1, 0)  # (BLOCK)
            tl.debug_barrier()  # no thread writes before all have read
            moved = tl.where(offs < num_newest - 1, moved, token.to(tl.int32))
            tl.store(newest_ptr + offs, moved, offs < num_newest)


def penalize(
    logits: Tensor,  # [batch, vocabulary] fp32, written
    rows: Tensor,  # [batch] int32, -1: padding
    edits: EditedRows,
) -> None:
    batch, vocab_size = logits.shape
    assert_packed("logits", logits, batch, vocab_size)
    assert_packed("rows", rows, batch)
    assert_packed("marks", edits.marks, len(edits.records), vocab_size)
    if batch:
        _penalize_kernel[(batch, triton.cdiv(vocab_size, _BLOCK))](
            logits, rows, edits.records, edits.marks, vocab_size, _BLOCK, **PINNED_OPTIONS
        )


def remember_drawn(
    token_ids: Tensor,  # [batch] int64
    rows: Tensor,  # [batch] int32, each once; -1: padding
    edits: EditedRows,  # whose marks and newest tokens are written
) -> None:
    batch = len(rows)
    assert_packed("tokens", token_ids, batch)
    assert_packed("rows", rows, batch)
    if batch:
        _remember_kernel[(batch,)](
            token_ids, rows, edits.records, edits.marks, edits.addresses, edits.marks.shape[1], _NEWEST_BLOCK,
            num_warps=1, **PINNED_OPTIONS,
        )  # fmt: skip


_TYPES = {"rows_ptr": "*i32", "records_ptr": "*i32", "marks_ptr": "*i32", "vocab_size": "i32"}

COMPILED = (
    Compiled(
        name="penalize",
        kernel=_penalize_kernel,
        types=_TYPES | {"logits_ptr": "*fp32"},
        constexprs={"BLOCK": _BLOCK},
        aligned=("vocab_size",),
    ),
    Compiled(
        name="penalize: what was drawn",
        kernel=_remember_kernel,
        types=_TYPES | {"token_ids_ptr": "*i64", "addresses_ptr": "*i64"},
        constexprs={"BLOCK": _NEWEST_BLOCK},
        num_warps=1,
        aligned=("vocab_size",),
    ),
)
