"""Which replica holds which blocks, and one walk that gives every replica's match.

Fed by `index_feed.py` (snapshots and KV events: exact) and by `dispatcher.py` (what a dispatch will make true: an
*expectation*, which counts from the dispatch until its first token, when events speak for it). Knows digests and
replica ids: nothing of tokens, loads or sockets.

The walk gallops, for a replica that holds a block holds all before it, *after every frame*: a replica's cache drops
a block with all that can only be reached through it (`workers/kv/prefix_cache.py`), a step's events come in one
frame, and an expectation is of a prompt's blocks from the first on, those that are held already included.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.block_hash import DIGEST_BYTES, split_digests
from protocol.events import GPU, Cleared, KvEvent, Removed, Stored
from router.prefixes.replica_slots import ReplicaSlots, Slot


class IndexState(enum.Enum):
    SYNCED = "synced"  # equal to the replica's cache, as of its last frame
    BLIND = "blind"  # no complete snapshot: only expectations count


@dataclass(frozen=True, slots=True)
class _Expectation:
    replica: str
    digests: Sequence[bytes]
    counts: dict[bytes, int]  # of the connection that it was made on: a later one knows nothing of it
    expires_at: float


class PrefixIndex:
    """Memory is bounded by what the replicas hold and what is in flight; a replica over its bound goes BLIND."""

    def __init__(
        self, *, expectation_ttl_s: float = 120.0, max_blocks_per_replica: int = 4 * 1024 * 1024
    ) -> None:
        self._expectation_ttl_s = expectation_ttl_s
        self._max_blocks_per_replica = max_blocks_per_replica
        self._slots = ReplicaSlots()
        self._expectations: OrderedDict[int, _Expectation] = OrderedDict()  # oldest first
        self._next_expectation = 0

    # What a replica holds

    def connect(self, replica: str) -> None:
        """The replica counts from now on, BLIND until its snapshot ends."""
        self._slots.take(replica)

    def disconnect(self, replica: str) -> None:
        """The replica holds nothing any more, and nothing is expected of it."""
        if self._slots.get(replica) is not None:
            self._slots.give_back(replica)

    def blind(self, replica: str) -> None:
        """Forget what the replica holds until its next snapshot; expectations stay."""
        self._slots.renew(replica)

    def begin_snapshot(self, replica: str) -> None:
        self._slots.renew(replica)

    def add_to_snapshot(self, replica: str, digests: bytes, medium: str = GPU) -> None:
        slot = self._slots[replica]
        assert not slot.synced, "a snapshot is added to between its begin and its end"
        self._hold(slot, digests, medium)

    def end_snapshot(self, replica: str) -> None:
        slot = self._slots[replica]
        if not slot.overfull:
            self._slots.sync(slot)

    def apply(self, replica: str, event: KvEvent) -> bool:
        """One event, in the order in which it happened. A BLIND replica's are ignored: its snapshot has them.

        False: it cannot be, for it stores what is held already or removes what is not. The index has drifted then.
        """
        slot = self._slots[replica]
        if not slot.synced:
            return True
        if isinstance(event, Cleared):
            self._slots.sync(self._slots.renew(replica))
            return True
        if isinstance(event, Stored):
            num_changes = self._hold(slot, event.digests, event.medium)
        else:
            assert isinstance(event, Removed), f"unknown KV event {event!r}"
            num_changes = self._slots.drop(slot, split_digests(event.digests), event.medium)
        return num_changes * DIGEST_BYTES == len(event.digests)

    def _hold(self, slot: Slot, digests: bytes, medium: str) -> int:
        """How many were new."""
        if slot.overfull:
            return 0
        num_new = self._slots.hold(slot, split_digests(digests), medium)
        if slot.num_held > self._max_blocks_per_replica:
            self._slots.renew(slot.replica).overfull = True
        return num_new

    # What a dispatch will make true

    def expect(self, replica: str, digests: Sequence[bytes], now: float) -> int:
        """The replica will soon hold this whole chain: count it already. Returns the number to withdraw it by."""
        number = self._next_expectation
        self._next_expectation += 1
        slot = self._slots[replica]
        self._slots.expect(slot, digests)
        expires_at = now + self._expectation_ttl_s
        self._expectations[number] = _Expectation(replica, digests, slot.expected, expires_at)
        return number

    def withdraw(self, number: int) -> None:
        """What no other dispatch will make true either is no longer expected. May be called again."""
        expectation = self._expectations.pop(number, None)
        if expectation is None:
            return
        slot = self._slots.get(expectation.replica)
        if slot is not None and slot.expected is expectation.counts:
            self._slots.expect_no_more(slot, expectation.digests)

    def expire(self, now: float) -> None:
        """Withdraw the expectations that are too old. Called before a match."""
        while self._expectations:
            number, oldest = next(iter(self._expectations.items()))
            if oldest.expires_at > now:
                return
            self.withdraw(number)

    # Questions

    def match(self, digests: Sequence[bytes]) -> dict[str, int]:
        """How many of the leading digests each replica holds; replicas that hold none are left out."""
        depths: dict[str, int] = {}
        depth, alive = 0, self._slots.live
        while alive and depth < len(digests):
            further = min(2 * depth or 1, len(digests))
            holding = alive & self._slots.holding(digests[further - 1])
            if holding != alive:
                self._narrow(digests, depth, alive, further, holding, depths)
            depth, alive = further, holding
        self._note(depths, alive, depth)
        return depths

    def _narrow(
        self,
        digests: Sequence[bytes],
        depth: int,
        alive: int,
        further: int,
        holding: int,
        depths: dict[str, int],
    ) -> None:
        """Those of `alive` hold `depth` digests, those of `holding` `further`: where do the others end?"""
        if further - depth == 1:
            self._note(depths, alive ^ holding, depth)
            return
        middle = (depth + further) // 2
        between = alive & self._slots.holding(digests[middle - 1]) | holding
        if between != alive:
            self._narrow(digests, depth, alive, middle, between, depths)
        if between != holding:
            self._narrow(digests, middle, between, further, holding, depths)

    def _note(self, depths: dict[str, int], bits: int, depth: int) -> None:
        while depth and bits:
            lowest = bits & -bits
            depths[self._slots.owner(lowest)] = depth
            bits ^= lowest

    def holds(self, replica: str, digest: bytes) -> bool:
        """By its snapshot and events alone."""
        slot = self._slots.get(replica)
        return slot is not None and bool(self._slots.holding(digest, exactly=True) & slot.bit)

    def state(self, replica: str) -> IndexState:
        slot = self._slots.get(replica)
        return IndexState.SYNCED if slot is not None and slot.synced else IndexState.BLIND

    def num_blocks(self, replica: str) -> int:
        """Exact entries, each medium's counted."""
        slot = self._slots.get(replica)
        return 0 if slot is None else slot.num_held

    async def own_blocks(self) -> dict[str, int]:
        """Of every SYNCED replica, how many blocks no other one holds: exact entries alone, each medium's counted.

        True for the moment of the call. The event loop has its turns meanwhile, and the index may change.
        """
        return await self._slots.own_blocks()

    @property
    def num_entries(self) -> int:
        """Digests in memory, those of lost replicas that are not swept yet included."""
        return self._slots.num_entries

    @property
    def num_bytes(self) -> int:
        """What they take, counted from above."""
        return self._slots.num_bytes

    def check_integrity(self) -> None:
        """For tests: masks, counts and expectations agree."""
        self._slots.check_integrity()
        expected: dict[str, Counter[bytes]] = {}
        for each in self._expectations.values():
            slot = self._slots.get(each.replica)
            if slot is not None and slot.expected is each.counts:
                expected.setdefault(each.replica, Counter()).update(each.digests)
        for replica, counts in expected.items():
            assert self._slots[replica].expected == counts, (
                "what is expected is what dispatches will make true"
            )
