"""Tokens that rows allow, forbid or favour, in place: what `workers/model/logit_edits.py` does in tensor operations.

    allowed    x_i -> -inf where bit i of the row's mask is 0
    added      x_i -> x_i + value, for each (i, value) of the row's list, before the position that it holds until

Masks and lists lie in buffers that outlive a step, so that a graph can hold both launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled

_BLOCK = 2048  # logits of a program: four vectors of 16 bytes for each of 128 threads
_LIST_BLOCK = 128


@triton.jit
def _allow_kernel(
    logits_ptr,  # [rows, vocab_size] fp32, written
    lines_ptr,  # [rows] int32: the row's line of masks, -1: it allows everything
    masks_ptr,  # [lines, num_words] int32
    row_stride,
    vocab_size,
    num_words,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    line = tl.load(lines_ptr + row).to(tl.int64)
    if line >= 0:
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = ids < vocab_size
        words = tl.load(masks_ptr + line * num_words + ids // 32, mask, -1)  # (BLOCK)
        forbidden = ((words >> (ids % 32)) & 1) == 0
        tl.store(logits_ptr + row * row_stride + ids, -float("inf"), mask & forbidden)


@triton.jit
def _add_kernel(
    logits_ptr,  # [rows, vocab_size] fp32, written
    begins_ptr,  # [rows + 1] int32: where each row's list begins, and the end of the last
    ids_ptr,  # [entries] int32, different within a row
    values_ptr,  # [entries] fp32
    until_ptr,  # [entries] int64, or None: always
    positions_ptr,  # [rows], or None
    row_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(begins_ptr + row + 1)
    for begin in range(tl.load(begins_ptr + row), end, BLOCK):
        offs = begin + tl.arange(0, BLOCK)
        mask = offs < end
        if until_ptr is not None:
            mask &= tl.load(positions_ptr + row) < tl.load(until_ptr + offs, mask, 0)
        logit_ptrs = logits_ptr + row * row_stride + tl.load(ids_ptr + offs, mask, 0)  # (BLOCK)
        tl.store(logit_ptrs, tl.load(logit_ptrs, mask) + tl.load(values_ptr + offs, mask), mask)


def allow_tokens(
    logits: Tensor,  # [rows, vocabulary] fp32, written
    lines: Tensor,  # [rows] int32, -1: the row allows everything
    masks: Tensor,  # [lines, at least vocabulary / 32] int32: bit i % 32 of word i // 32 is token i's
) -> None:
    num_rows, vocab_size = logits.shape
    _check(logits, lines)
    assert masks.dtype == torch.int32 and masks.is_contiguous() and 32 * masks.shape[1] >= vocab_size
    if num_rows:
        _allow_kernel[(num_rows, triton.cdiv(vocab_size, _BLOCK))](
            logits, lines, masks, logits.stride(0), vocab_size, masks.shape[1], _BLOCK, **PINNED_OPTIONS
        )


def add_to_logits(
    logits: Tensor,  # [rows, vocabulary] fp32, written
    begins: Tensor,  # [rows + 1] int32: row r's entries are those from begins[r] to begins[r + 1]
    ids: Tensor,  # [entries] int32, different within a row
    values: Tensor,  # [entries] fp32
    until: Tensor
    | None = None,  # [entries] int64: an entry counts for tokens at positions before; None: always
    positions: Tensor | None = None,  # [rows] int32 or int64, of the tokens to draw
) -> None:
    """Entries beyond the last row's are not looked at."""
    _check(logits, begins[1:])
    assert ids.dtype == torch.int32 and values.dtype == torch.float32 and ids.shape == values.shape
    assert (until is None) == (positions is None), "a bound on positions needs positions, and they a bound"
    assert until is None or (until.dtype == torch.int64 and until.shape == ids.shape)
    if len(logits):
        _add_kernel[(len(logits),)](
            logits, begins, ids, values, until, positions, logits.stride(0), _LIST_BLOCK, **PINNED_OPTIONS
        )


def _check(logits: Tensor, numbers: Tensor) -> None:
    assert logits.dtype == torch.float32 and logits.stride(1) == 1, "logits must be fp32, a row in one piece"
    assert numbers.shape == (len(logits),) and numbers.dtype == torch.int32 and numbers.is_contiguous()


COMPILED = (
    Compiled(
        name="allow_tokens",
        kernel=_allow_kernel,
        types={
            "logits_ptr": "*fp32",
            "lines_ptr": "*i32",
            "masks_ptr": "*i32",
            "row_stride": "i32",
            "vocab_size": "i32",
            "num_words": "i32",
        },
        constexprs={"BLOCK": _BLOCK},
        aligned=("row_stride", "vocab_size"),
    ),
    Compiled(
        name="add_to_logits",
        kernel=_add_kernel,
        types={
            "logits_ptr": "*fp32",
            "begins_ptr": "*i32",
            "ids_ptr": "*i32",
            "values_ptr": "*fp32",
            "until_ptr": "*i64",
            "positions_ptr": "*i64",
            "row_stride": "i32",
        },
        constexprs={"BLOCK": _LIST_BLOCK},
        aligned=("row_stride",),
    ),
)
