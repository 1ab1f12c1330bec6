"""Wide state of the few rows that need it: each holds a line of one matrix, which grows with their number.

Used by the sampler's penalties and bad words. It knows no request, and what a line means is its owner's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RowMatrix:
    """Lines are given out by `take` with whatever they held before. Without rows it holds no memory."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.lines = torch.empty((0, width), dtype=dtype)  # [lines, width]
        self._taken: dict[int, int] = {}  # row to line
        self._free: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._taken)

    def take(self, row: int) -> Tensor:
        """A line for a row that has none: [width], to be written whole."""
        assert row not in self._taken, f"row {row} has a line already"
        if not self._free:
            self._grow()
        line = self._taken[row] = self._free.pop()
        return self.lines[line]

    def give_back(self, row: int) -> None:
        line = self._taken.pop(row, None)
        if line is not None:
            self._free.append(line)
        if not self._taken and self._free:
            self.lines, self._free = self.lines[:0].clone(), []

    def widen_left(self, width: int, value: float) -> None:
        """Put so many columns of `value` in front of every line."""
        front = self.lines.new_full((len(self.lines), width), value)
        self.lines = torch.cat([front, self.lines], 1)

    def lines_of(self, rows: Sequence[int]) -> Tensor:  # -> [rows] int64
        return torch.tensor([self._taken[row] for row in rows])

    def _grow(self) -> None:
        before = len(self.lines)
        after = max(2 * before, 1)
        lines = self.lines.new_empty((after, self.lines.shape[1]))
        lines[:before] = self.lines
        self.lines = lines
        self._free.extend(range(after - 1, before - 1, -1))
