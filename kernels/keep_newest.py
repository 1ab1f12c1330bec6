"""Keeps the tokens that a step drew by their rows, for the next one to feed, in plain torch.

newest_tokens[rows[i]] = drawn[i]                       a row of -1 is padding
"""

from __future__ import annotations

from torch import Tensor


def keep_newest(
    drawn: Tensor,  # [batch] int32 or int64, the tokens drawn after each batch row
    rows: Tensor,  # [batch] int32, each once; -1: padding
    newest_tokens: Tensor,  # [rows] int32 or int64, written
) -> None:
    is_row = rows >= 0
    newest_tokens[rows[is_row].long()] = drawn[is_row].to(newest_tokens.dtype)
