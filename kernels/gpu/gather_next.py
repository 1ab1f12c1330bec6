"""The next step's inputs from what stays on the device, as `kernels/gather_next.py` means it: a captured graph's first
kernel, and the one that keeps what was drawn as its last.

    position = positions[row] + 1, kept;  token = newest_tokens[row];  slot = block · block_size + offset

A batch decodes for hours without a byte from the host, but for the new blocks that `apply_deltas.py` enters.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gather_next import DecodeInputs, DecodeState
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

_BLOCK = 128  # batch rows of a program, one for each thread


@triton.jit(do_not_specialize=["batch"])  # else each is compiled thrice, in traffic
def _gather_next_kernel(
    rows_ptr,  # [batch], -1: padding
    newest_ptr,  # [rows]
    kept_ptr,  # [rows], positions, each grows by one
    tables_ptr,  # [rows, blocks]
    token_ids_ptr,  # [batch], written
    positions_ptr,  # [batch], written
    slots_ptr,  # [batch], written
    batch,
    tables_stride,  # elements from one row to the next
    num_columns,
    block_size,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < batch
    row = tl.load(rows_ptr + offs, mask, -1).to(tl.int64)  # (BLOCK), as all that follow
    is_row = row >= 0
    position = tl.load(kept_ptr + row, is_row, -1) + 1
    tl.store(kept_ptr + row, position, is_row)
    tl.store(positions_ptr + offs, position, mask)
    tl.store(token_ids_ptr + offs, tl.load(newest_ptr + row, is_row, 0), mask)
    column = position // block_size
    in_table = is_row & (column < num_columns)
    block = tl.load(tables_ptr + row * tables_stride + column, in_table, 0).to(tl.int64)
    slot = block * block_size + position % block_size
    tl.store(slots_ptr + offs, tl.where(block > 0, slot, -1), mask)


def gather_next(
    rows: Tensor,  # [batch] int32, each once; -1: padding
    state: DecodeState,  # its positions grow
    block_size: int,
    out: DecodeInputs,  # written
) -> None:
    batch = len(rows)
    for name, column in (("token_ids", out.token_ids), ("positions", out.positions), ("slots", out.slots)):
        assert_packed(name, column, batch)
    assert_packed("rows", rows, batch)
    assert_packed("newest_tokens", state.newest_tokens, len(state.block_tables))
    assert_packed("the kept positions", state.positions, len(state.block_tables))
    assert state.block_tables.stride(1) == 1, "a row's blocks must follow each other"
    _gather_next_kernel[(triton.cdiv(batch, _BLOCK),)](
        rows,
        state.newest_tokens,
        state.positions,
        state.block_tables,
        out.token_ids,
        out.positions,
        out.slots,
        batch,
        state.block_tables.stride(0),
        state.block_tables.shape[1],
        block_size,
        BLOCK=_BLOCK,
        **PINNED_OPTIONS,
    )


@triton.jit(do_not_specialize=["batch"])  # else each is compiled thrice, in traffic
def _keep_newest_kernel(
    drawn_ptr,  # [batch]
    rows_ptr,  # [batch], -1: padding
    newest_ptr,  # [rows], written
    batch,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + offs, offs < batch, -1)  # (BLOCK)
    tl.store(newest_ptr + row, tl.load(drawn_ptr + offs, row >= 0, 0), row >= 0)


def keep_newest(
    drawn: Tensor,  # [batch] int32 or int64, the tokens drawn after each batch row
    rows: Tensor,  # [batch] int32, each once; -1: padding
    newest_tokens: Tensor,  # [rows] int32 or int64, written
) -> None:
    batch = len(rows)
    assert_packed("drawn", drawn, batch)
    assert_packed("rows", rows, batch)
    assert_packed("newest_tokens", newest_tokens, len(newest_tokens))
    _keep_newest_kernel[(triton.cdiv(batch, _BLOCK),)](
        drawn, rows, newest_tokens, batch, BLOCK=_BLOCK, **PINNED_OPTIONS
    )


COMPILED = (
    Compiled(
        name="gather_next",
        kernel=_gather_next_kernel,
        types=dict.fromkeys(("rows_ptr", "kept_ptr", "tables_ptr"), "*i32")
        | dict.fromkeys(("newest_ptr", "token_ids_ptr", "positions_ptr", "slots_ptr"), "*i64")
        | dict.fromkeys(("batch", "tables_stride", "num_columns", "block_size"), "i32"),
        constexprs={"BLOCK": _BLOCK},
        aligned=("block_size",),
    ),
    Compiled(
        name="keep_newest",
        kernel=_keep_newest_kernel,
        types={"drawn_ptr": "*i64", "rows_ptr": "*i32", "newest_ptr": "*i64", "batch": "i32"},
        constexprs={"BLOCK": _BLOCK},
    ),
)
