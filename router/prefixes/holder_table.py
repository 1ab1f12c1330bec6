"""Who holds each digest, as one integer of bits. Made by `replica_slots.py`: a table a medium, one of what is expected.

A digest costs its own bytes and one dict entry however many replicas hold it: that is why there is no set of digests
per replica. So a lost replica's bit cannot be looked up, it is swept out: everything moves, a little at every change,
into a fresh dict and leaves that bit behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

_DIGEST_BYTES = 64  # a bytes object of sixteen, as the allocator rounds it


class HolderTable:
    """`moving` is empty but during a pass; then a digest is either there or in `moved`."""

    __slots__ = ("_leaving", "_widest", "moved", "moving", "num_pairs")

    def __init__(self) -> None:
        self.moved: dict[bytes, int] = {}
        self.moving: dict[bytes, int] = {}
        self.num_pairs = 0  # of a digest and a bit
        self._leaving = 0  # the bits that the pass leaves behind
        self._widest = 0  # bit that was ever added

    def __len__(self) -> int:
        return len(self.moved) + len(self.moving)

    @property
    def num_bytes(self) -> int:
        """Counted from above: every digest that could have two holders has a mask of its own."""
        tables = sys.getsizeof(self.moved) + sys.getsizeof(self.moving)
        num_masks = min(len(self), self.num_pairs - len(self))
        mask_bytes = sys.getsizeof(self._widest) + 15 & ~15
        return tables + _DIGEST_BYTES * len(self) + mask_bytes * num_masks

    def holders(self, digest: bytes) -> int:
        """Those of lost replicas, as long as they are not swept, included."""
        return self.moved.get(digest) or self.moving.get(digest, 0)

    def masks(self) -> list[int]:
        """Of every digest, its holders as they are now. Copied in one go: 3 ns a digest."""
        return [*self.moved.values(), *self.moving.values()]

    def add(self, digests: Iterable[bytes], bit: int) -> int:
        """How many of them did not have the bit."""
        digests = self._brought_over(digests)
        masks, num_added = self.moved, 0
        holders = masks.get
        self._widest = max(self._widest, bit)
        for digest in digests:
            mask = holders(digest, 0)
            if not mask & bit:
                masks[digest] = mask | bit if mask else bit  # the replica's own integer, not one a digest
                num_added += 1
        self.num_pairs += num_added
        return num_added

    def remove(self, digests: Iterable[bytes], bit: int) -> int:
        """How many of them had the bit."""
        digests = self._brought_over(digests)
        masks, num_removed = self.moved, 0
        holders = masks.get
        for digest in digests:
            mask = holders(digest, 0)
            if mask & bit:
                num_removed += 1
                if mask == bit:
                    del masks[digest]
                else:
                    masks[digest] = mask ^ bit
        self.num_pairs -= num_removed
        return num_removed

    # Sweeping

    def begin_pass(self, leaving: int) -> None:
        """Everything has to move, at `sweep`'s pace, and these bits do not come along."""
        assert not self.moving, "one pass at a time"
        self.moved, self.moving, self._leaving = {}, self.moved, leaving

    def sweep(self, budget: int) -> int:
        """Move up to `budget` digests; returns how many. The pass is over when `moving` is empty."""
        num_swept = min(budget, len(self.moving))
        for _ in range(num_swept):
            self._move(*self.moving.popitem())
        if not self.moving:
            self.moving = {}  # an emptied dict keeps its memory
        return num_swept

    def _brought_over(self, digests: Iterable[bytes]) -> Iterable[bytes]:
        """Move these first: they are about to change."""
        if self.moving:
            digests = list(digests)
            for digest in digests:
                self._move(digest, self.moving.pop(digest, 0))
        return digests

    def _move(self, digest: bytes, mask: int) -> None:
        left_behind = mask & self._leaving
        if left_behind:
            self.num_pairs -= left_behind.bit_count()
            mask ^= left_behind
        if mask:
            self.moved[digest] = mask
