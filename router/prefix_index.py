"""Which replica holds which blocks, and one walk that gives every replica's match.

Fed by `index_feed.py` (snapshots and KV events: exact) and by `dispatcher.py` (what a dispatch will make true: an
*expectation*, which counts at once and which events confirm). Knows digests and replica ids: nothing of tokens,
loads or sockets.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.block_hash import split_digests
from protocol.events import GPU, Cleared, KvEvent, Removed, Stored
from router.replica_slots import ReplicaSlots, Slot


class IndexState(enum.Enum):
    SYNCED = "synced"  # equal to the replica's cache, as of its last frame
    BLIND = "blind"  # no complete snapshot: only expectations count


@dataclass(frozen=True, slots=True)
class _Expectation:
    replica: str
    digests: Sequence[bytes]
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
        self._hold(slot, split_digests(digests), medium)

    def end_snapshot(self, replica: str) -> None:
        slot = self._slots[replica]
        if not slot.overfull:
            self._slots.sync(slot)

    def apply(self, replica: str, event: KvEvent) -> None:
        """One event, in the order in which it happened. A BLIND replica's are ignored: its snapshot has them."""
        slot = self._slots[replica]
        if not slot.synced:
            return
        if isinstance(event, Stored):
            self._hold(slot, split_digests(event.digests), event.medium)
        elif isinstance(event, Removed):
            self._slots.drop(slot, split_digests(event.digests), event.medium)
        else:
            assert isinstance(event, Cleared), f"unknown KV event {event!r}"
            self._slots.sync(self._slots.renew(replica))

    def _hold(self, slot: Slot, digests: Sequence[bytes], medium: str) -> None:
        if slot.overfull:
            return
        self._slots.hold(slot, digests, medium)
        if slot.num_held() > self._max_blocks_per_replica:
            self._slots.renew(slot.replica).overfull = True

    # What a dispatch will make true

    def expect(self, replica: str, digests: Sequence[bytes], now: float) -> int:
        """The replica will soon hold these: count them already. Returns the number under which to withdraw."""
        number = self._next_expectation
        self._next_expectation += 1
        missing = self._slots.expect(self._slots[replica], digests, number)
        self._expectations[number] = _Expectation(replica, missing, now + self._expectation_ttl_s)
        return number

    def withdraw(self, number: int) -> None:
        """What has not come true of this expectation, and that no later one repeats, is no longer expected."""
        expectation = self._expectations.pop(number, None)
        slot = None if expectation is None else self._slots.get(expectation.replica)
        if expectation is None or slot is None or not slot.expected:
            return
        for digest in expectation.digests:
            if slot.expected.get(digest) == number:
                self._slots.expect_no_more(slot, digest)

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
        slots = self._slots
        exact, expected, synced, alive = slots.exact.get, slots.expected.get, slots.synced, slots.live
        for depth, digest in enumerate(digests):
            holding = alive & (exact(digest, 0) & synced | expected(digest, 0))
            if holding != alive:
                self._note(depths, alive ^ holding, depth)
                alive = holding
                if not alive:
                    return depths
        self._note(depths, alive, len(digests))
        return depths

    def _note(self, depths: dict[str, int], bits: int, depth: int) -> None:
        while depth and bits:
            lowest = bits & -bits
            depths[self._slots.owner(lowest)] = depth
            bits ^= lowest

    def state(self, replica: str) -> IndexState:
        slot = self._slots.get(replica)
        return IndexState.SYNCED if slot is not None and slot.synced else IndexState.BLIND

    def num_blocks(self, replica: str) -> int:
        """Exact entries, each medium's counted."""
        slot = self._slots.get(replica)
        return 0 if slot is None else slot.num_held()

    @property
    def num_entries(self) -> int:
        """Digests in memory, those of lost replicas that are not swept yet included."""
        return len(self._slots.exact) + len(self._slots.expected)

    def check_integrity(self) -> None:
        """For tests: every mask agrees with every replica's own sets, and every expectation can expire."""
        self._slots.check_integrity()
        for expectation in self._expectations.values():
            assert expectation.expires_at >= 0.0, "an expectation has its time"
