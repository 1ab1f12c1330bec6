"""Tokens that rows forbid, allow or favour, and their logits in fp32, as `kernels/edited_rows.py` means it.

    held back    x -> x + FORBIDDEN      for marked tokens, before the position that they are held back until
    bias         x -> x + bias           -inf where the bias is: a token that is not allowed

The logits stay as they are, for log-probabilities, which are of raw ones. What rows wish lies by row in buffers that
outlive a step, so that a graph can hold the launch; of rows that do not ask nothing but the logits is read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import edited_rows
from kernels.edited_rows import EditedRows
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows
from kernels.gpu.sampling.rounds import DTYPES

_BLOCK = 2048  # logits of a program: four vectors of 16 bytes for each of 128 threads

FORBIDDEN = tl.constexpr(edited_rows.FORBIDDEN)
RECORD = tl.constexpr(edited_rows.RECORD)
_WISHES = tl.constexpr(edited_rows.WISHES)
_BIASED = tl.constexpr(edited_rows.BIASED)
_HELD_UNTIL = tl.constexpr(edited_rows.HELD_UNTIL)
_HELD_BACK = tl.constexpr(edited_rows.HELD_BACK)


@triton.jit
def _edit_kernel(
    logits_ptr,  # [batch, vocab_size]
    rows_ptr,  # [batch], -1: padding
    positions_ptr,  # [batch]
    records_ptr,  # [rows, RECORD] int32
    biases_ptr,  # [rows, vocab_size] fp32
    marks_ptr,  # [rows, vocab_size] int32
    out_ptr,  # [batch, vocab_size] fp32, written
    row_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + place).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = ids < vocab_size
    x = tl.load(logits_ptr + place * row_stride + ids, mask, 0.0).to(tl.float32)  # (BLOCK)
    if row >= 0:
        record_ptr = records_ptr + row * RECORD
        if tl.load(positions_ptr + place) < tl.load(record_ptr + _HELD_UNTIL):
            marks = tl.load(marks_ptr + row * vocab_size + ids, mask, 0)
            x = tl.where((marks & _HELD_BACK) != 0, x + FORBIDDEN, x)
        if (tl.load(record_ptr + _WISHES) & _BIASED) != 0:
            biases = tl.load(biases_ptr + row * vocab_size + ids, mask, 0.0)
            x = tl.where(biases == -float("inf"), biases, x + biases)  # whatever x is
    tl.store(out_ptr + place * vocab_size + ids, x, mask)


def edit_logits(
    logits: Tensor,  # [batch, vocabulary]
    rows: Tensor,  # [batch] int32, -1: padding
    positions: Tensor,  # [batch] int32 or int64, of the tokens to draw
    edits: EditedRows,
    out: Tensor,  # [batch, vocabulary] fp32, written
) -> None:
    batch, vocab_size = logits.shape
    assert_rows("logits", logits, vocab_size)
    assert out.dtype == torch.float32
    assert_packed("out", out, batch, vocab_size)
    assert_packed("rows", rows, batch)
    assert_packed("positions", positions, batch)
    for name, matrix in (("biases", edits.biases), ("marks", edits.marks)):
        assert_packed(name, matrix, len(edits.records), vocab_size)
    if batch:
        _edit_kernel[(batch, triton.cdiv(vocab_size, _BLOCK))](
            logits, rows, positions, edits.records, edits.biases, edits.marks, out,
            logits.stride(0), vocab_size, _BLOCK, **PINNED_OPTIONS,
        )  # fmt: skip


COMPILED = tuple(
    Compiled(
        name=f"edit_logits {dtype}",
        kernel=_edit_kernel,
        types={
            "logits_ptr": f"*{dtype}",
            "rows_ptr": "*i32",
            "positions_ptr": "*i64",
            "records_ptr": "*i32",
            "biases_ptr": "*fp32",
            "marks_ptr": "*i32",
            "out_ptr": "*fp32",
            "row_stride": "i32",
            "vocab_size": "i32",
        },
        constexprs={"BLOCK": _BLOCK},
        aligned=("row_stride", "vocab_size"),
    )
    for dtype in DTYPES
)
