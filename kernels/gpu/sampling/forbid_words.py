"""Words of several tokens that must not come, in place, as `kernels/edited_rows.py` means it.

    x_last -> x_last + FORBIDDEN        for each of the row's words whose other tokens are those drawn last, in order

A program takes a row, 64 of its words at a time, and compares them from behind. Several may end alike: their terms are
equal, so they add up alike in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels import edited_rows
from kernels.edited_rows import EditedRows
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed
from kernels.gpu.sampling.edit_logits import FORBIDDEN, RECORD

_BLOCK = 64  # words at a time
_WARPS = 2

_NUM_WORDS = tl.constexpr(edited_rows.NUM_WORDS)
_NUM_NEWEST = tl.constexpr(edited_rows.NUM_NEWEST)


@triton.jit
def _forbid_words_kernel(
    logits_ptr,  # [batch, vocab_size] fp32, written
    rows_ptr,  # [batch], -1: padding
    records_ptr,  # [rows, RECORD] int32
    addresses_ptr,  # [rows] int64: of [num_newest] and [num_words] and [tokens] int32
    vocab_size,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + place).to(tl.int64)
    num_words = tl.load(records_ptr + row * RECORD + _NUM_WORDS, row >= 0, 0)
    if num_words > 0:
        num_newest = tl.load(records_ptr + row * RECORD + _NUM_NEWEST)
        newest_ptr = tl.load(addresses_ptr + row).to(tl.pointer_type(tl.int32))
        ends_ptr = newest_ptr + num_newest
        tokens_ptr = ends_ptr + num_words
        for begin in range(0, num_words, BLOCK):
            offs = begin + tl.arange(0, BLOCK)
            begun = offs < num_words
            ends = tl.load(ends_ptr + offs, begun, 0)  # (BLOCK)
            begins = tl.load(ends_ptr + offs - 1, begun & (offs > 0), 0)
            for back in range(num_newest):
                places = ends - 2 - back
                is_inside = places >= begins
                tokens = tl.load(tokens_ptr + places, begun & is_inside, 0)
                newest = tl.load(newest_ptr + num_newest - 1 - back)
                begun &= (tokens == newest) | (places < begins)
            last = tl.load(tokens_ptr + ends - 1, begun, 0)
            tl.atomic_add(logits_ptr + place * vocab_size + last, FORBIDDEN, begun, sem="relaxed")


def forbid_words(
    logits: Tensor,  # [batch, vocabulary] fp32, written
    rows: Tensor,  # [batch] int32, -1: padding
    edits: EditedRows,
) -> None:
    batch, vocab_size = logits.shape
    assert_packed("logits", logits, batch, vocab_size)
    assert_packed("rows", rows, batch)
    if batch:
        _forbid_words_kernel[(batch,)](
            logits,
            rows,
            edits.records,
            edits.addresses,
            vocab_size,
            _BLOCK,
            num_warps=_WARPS,
            **PINNED_OPTIONS,
        )


COMPILED = (
    Compiled(
        name="forbid_words",
        kernel=_forbid_words_kernel,
        types={
            "logits_ptr": "*fp32",
            "rows_ptr": "*i32",
            "records_ptr": "*i32",
            "addresses_ptr": "*i64",
            "vocab_size": "i32",
        },
        constexprs={"BLOCK": _BLOCK},
        num_warps=_WARPS,
        aligned=("vocab_size",),
    ),
)
