"""Which replica owns which bit of the index's masks, and what each bit's life is. The tables under `prefix_index.py`.

A replica owns one bit, its *slot*. To lose a replica, or all that it holds, is to take its bit out of the live mask,
at once; a pass over the tables sweeps it out of the digests' masks, a little at every later change, and only then is
it given to another.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.prefixes.holder_table import HolderTable

_SWEEP_AT_LEAST = 64  # digests that every change moves; twice its own size if that is more
_COUNTED_AT_ONCE = 2048  # masks: a tenth of a millisecond, with hundreds of replicas one at most


@dataclass(slots=True, eq=False)
class Slot:
    """One generation of one replica."""

    replica: str
    bit: int
    synced: bool = False  # what it holds counts
    overfull: bool = False  # it held more than the bound: nothing of it counts until the next snapshot
    num_held: int = 0  # blocks, each medium's counted
    expected: dict[bytes, int] = field(default_factory=dict)  # by how many dispatches


class ReplicaSlots:
    def __init__(self) -> None:
        self.live = 0  # bits of connected replicas
        self.synced = 0  # those among them whose exact entries count
        self._exact: dict[str, HolderTable] = {}  # by medium
        self._expected = HolderTable()
        self._tables = [self._expected]  # all of them
        self._current: dict[str, Slot] = {}
        self._owners: dict[int, str] = {}  # of every bit in use, stale ones included
        self._free_bits: list[int] = []
        self._stale = 0  # bits that wait for the next pass
        self._leaving = 0  # bits that the present pass leaves behind

    def __getitem__(self, replica: str) -> Slot:
        return self._current[replica]

    def get(self, replica: str) -> Slot | None:
        return self._current.get(replica)

    def owner(self, bit: int) -> str:
        return self._owners[bit]

    @property
    def num_entries(self) -> int:
        return sum(map(len, self._tables))

    @property
    def num_bytes(self) -> int:
        return sum(table.num_bytes for table in self._tables)

    def holding(self, digest: bytes, exactly: bool = False) -> int:
        """The bits of the connected replicas that hold this block; unless `exactly`, of those that soon will too."""
        exact = 0
        for table in self._exact.values():
            exact |= table.holders(digest)
        exact &= self.synced
        return exact if exactly else exact | self._expected.holders(digest) & self.live

    async def own_blocks(self) -> dict[str, int]:
        """Of every synced replica, the blocks that no other one holds on that medium: all as of the call.

        The event loop has its turns while they are counted.
        """
        synced, tables = self.synced, [table.masks() for table in self._exact.values()]
        owners = {bit: self._owners[bit] for bit in _bits_of(synced)}
        own = dict.fromkeys(owners.values(), 0)
        for masks in tables:
            for start in range(0, len(masks), _COUNTED_AT_ONCE):
                for mask, count in Counter(masks[start : start + _COUNTED_AT_ONCE]).items():
                    owner = owners.get(mask & synced)
                    if owner is not None:
                        own[owner] += count
                await asyncio.sleep(0)
        return own

    # Generations

    def take(self, replica: str) -> Slot:
        assert replica not in self._current, f"replica {replica} has a slot already"
        bit = self._free_bits.pop() if self._free_bits else 1 << len(self._owners)
        self._owners[bit] = replica
        slot = self._current[replica] = Slot(replica, bit)
        self.live |= bit
        return slot

    def give_back(self, replica: str) -> None:
        """Costs the same whatever the replica holds."""
        self._retire(self._current.pop(replica))

    def renew(self, replica: str) -> Slot:
        """A new generation that holds nothing, is not synced, and of which the same is expected."""
        old = self._current.pop(replica)
        new = self.take(replica)  # before the old bit is free, so that they differ
        self._expected.remove(old.expected, old.bit)
        self._expected.add(old.expected, new.bit)
        new.expected, old.expected = old.expected, {}
        self._retire(old)
        return new

    def _retire(self, slot: Slot) -> None:
        self.live &= ~slot.bit
        self.synced &= ~slot.bit
        if slot.num_held or slot.expected:
            self._stale |= slot.bit
            self.sweep(0)
        else:
            self._free(slot.bit)

    def _free(self, bit: int) -> None:
        del self._owners[bit]
        self._free_bits.append(bit)

    def sync(self, slot: Slot) -> None:
        slot.synced = True
        self.synced |= slot.bit

    # Entries

    def hold(self, slot: Slot, digests: Sequence[bytes], medium: str) -> int:
        """How many of them it did not hold."""
        table = self._exact.get(medium)
        if table is None:
            table = self._exact[medium] = HolderTable()
            self._tables.append(table)
        num_new = table.add(digests, slot.bit)
        slot.num_held += num_new
        self.sweep(len(digests))
        return num_new

    def drop(self, slot: Slot, digests: Sequence[bytes], medium: str) -> int:
        """How many of them it held on that medium; the others are passed over."""
        table = self._exact.get(medium)
        if table is None:
            return 0
        num_gone = table.remove(digests, slot.bit)
        slot.num_held -= num_gone
        self.sweep(len(digests))
        return num_gone

    def expect(self, slot: Slot, digests: Sequence[bytes]) -> None:
        """One dispatch more will make these true."""
        counts = slot.expected
        for digest in digests:
            counts[digest] = counts.get(digest, 0) + 1
        self._expected.add(digests, slot.bit)
        self.sweep(len(digests))

    def expect_no_more(self, slot: Slot, digests: Sequence[bytes]) -> None:
        """One dispatch less. Each of these must be expected."""
        counts, unexpected = slot.expected, []
        for digest in digests:
            left = counts[digest] - 1
            if left:
                counts[digest] = left
            else:
                del counts[digest]
                unexpected.append(digest)
        self._expected.remove(unexpected, slot.bit)

    # Stale bits

    def sweep(self, num_changes: int) -> None:
        """Move faster than changes add new entries, so that memory stays within twice what the living hold."""
        budget = max(_SWEEP_AT_LEAST, 2 * num_changes)
        if not self._leaving:
            self._begin_pass()
        while self._leaving and budget > 0:
            for table in self._tables:
                budget -= table.sweep(budget)
            if not any(table.moving for table in self._tables):
                self._end_pass()
                self._begin_pass()

    def _begin_pass(self) -> None:
        self._leaving, self._stale = self._stale, 0
        if self._leaving:
            for table in self._tables:
                table.begin_pass(self._leaving)

    def _end_pass(self) -> None:
        for bit in _bits_of(self._leaving):
            self._free(bit)
        self._leaving = 0

    def check_integrity(self) -> None:
        """Count every bit again; for tests."""
        known, counts = sum(self._owners), defaultdict[int, int](int)
        for table in self._exact.values():
            for bit in self._every_bit(table, known):
                counts[bit] += 1
        expected = defaultdict[int, int](int)
        for bit in self._every_bit(self._expected, known):
            expected[bit] += 1
        for replica, slot in self._current.items():
            assert self._owners.get(slot.bit) == slot.replica == replica, "a bit belongs to its replica alone"
            assert counts[slot.bit] == slot.num_held, "a replica holds what is counted"
            assert expected[slot.bit] == len(slot.expected), "what is expected has its bit"
            assert all(self._expected.holders(digest) & slot.bit for digest in slot.expected), (
                "a wrong block has it"
            )
        assert self.live == sum(slot.bit for slot in self._current.values()), "the live mask is wrong"
        synced = sum(slot.bit for slot in self._current.values() if slot.synced)
        assert self.synced == synced, "the synced mask is wrong"
        assert known == self.live | self._stale | self._leaving, "a bit in use has no state"
        assert known == self.live + self._stale + self._leaving, "a bit in use has two"
        assert not set(self._free_bits) & set(self._owners), "a bit in use is free"

    @staticmethod
    def _every_bit(table: HolderTable, known: int) -> list[int]:
        assert table.moved.keys().isdisjoint(table.moving), "a digest stands on both sides of the pass"
        masks = [*table.moved.values(), *table.moving.values()]
        assert all(mask and not mask & ~known for mask in masks), "a mask names nobody, or somebody unknown"
        bits = [bit for mask in masks for bit in _bits_of(mask)]
        assert len(bits) == table.num_pairs, "the pairs are counted wrongly"
        return bits


def _bits_of(mask: int) -> list[int]:
    bits = []
    while mask:
        bits.append(mask & -mask)
        mask &= mask - 1
    return bits
