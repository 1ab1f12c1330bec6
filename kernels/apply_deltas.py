"""table[row, column] = value for a few places of a table that stays on its device, in plain torch.

So a step's new blocks reach the resident block tables, and a row's new start its resident position.
"""

from __future__ import annotations

from torch import Tensor


def apply_deltas(
    table: Tensor,  # [rows, columns] int32, written
    deltas: Tensor,  # [3, deltas] int32: rows, columns, values; no place twice; row -1: padding
) -> None:
    rows, columns, values = deltas[:, deltas[0] >= 0].unbind()
    table[rows, columns] = values
