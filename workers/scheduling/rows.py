"""The runner's rows: small integers from a free list, and who has which. Owned by `scheduler.py`."""

from __future__ import annotations


class Rows:
    """A row given back is reported once, in the next plan's `ends`."""

    __slots__ = ("_ends", "_free", "num_rows")

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self._ends: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return self._free.pop()

    def give_back(self, row: int) -> None:
        self._free.append(row)
        self._ends.append(row)

    def take_ends(self) -> tuple[int, ...]:
        ends = tuple(self._ends)
        self._ends.clear()
        return ends

    def check_integrity(self, used: list[int]) -> None:
        rows = sorted([*self._free, *used])
        assert rows == list(range(self.num_rows)), f"rows are lost or used twice: {rows}"
