"""The inputs of a step that feeds every row the token drawn last, made from what stays on the device, in plain torch.

    position = positions[row] + 1, kept;  token = newest_tokens[row];  slot = its place in the pool by the block table

A slot is block · block_size + offset, or -1 where the row has no block there: the table ends before, or holds the null
block. A row of -1 is padding: token 0 at position 0 with slot -1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeState:
    """What stays on the device from step to step, by the rows of the block tables."""

    newest_tokens: Tensor  # [rows] int32 or int64, of each row the token drawn last
    positions: Tensor  # [rows] int32, of the token before it: the last one in the pool
    block_tables: Tensor  # [rows, blocks] int32


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Of one token of each batch row; all of one length."""

    token_ids: Tensor  # [batch] int32 or int64
    positions: Tensor  # [batch] int32 or int64
    slots: Tensor  # [batch] int32 or int64


def gather_next(
    rows: Tensor,  # [batch] int32, each once; -1: padding
    state: DecodeState,  # its positions grow
    block_size: int,
    out: DecodeInputs,  # written
) -> None:
    is_row, places = rows >= 0, rows.clamp(min=0).long()
    positions = (state.positions[places] + 1).where(is_row, 0)
    columns, num_columns = positions // block_size, state.block_tables.shape[1]
    blocks = state.block_tables[places, columns.clamp(max=num_columns - 1)].long()
    has_block = is_row & (columns < num_columns) & (blocks > 0)
    out.token_ids.copy_(state.newest_tokens[places].where(is_row, 0))
    out.positions.copy_(positions)
    out.slots.copy_((blocks * block_size + positions % block_size).where(has_block, -1))
    state.positions[places[is_row]] = positions[is_row]


def keep_newest(
    drawn: Tensor,  # [batch] int32 or int64, the tokens drawn after each batch row
    rows: Tensor,  # [batch] int32, each once; -1: padding
    newest_tokens: Tensor,  # [rows] int32 or int64, written
) -> None:
    is_row = rows >= 0
    newest_tokens[rows[is_row].long()] = drawn[is_row].to(newest_tokens.dtype)
