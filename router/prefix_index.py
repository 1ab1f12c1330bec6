"""Which replica holds which blocks: a map from digest to replicas, and one walk that gives every replica's match.

Fed by `index_feed.py` (snapshots and KV events, exact) and by `dispatcher.py` (what a dispatch will make true, an
*expectation*). Knows digests and replica ids only: nothing of tokens, loads or sockets.

Each replica owns one bit, a *slot*, in every digest's mask. To lose a replica is to take its bit out of the live
mask, at once; the bit is swept out of the masks a little at every later change and only then given to another.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protocol.block_hash import split_digests
from protocol.events import GPU, Cleared, KvEvent, Removed, Stored

_SWEEP_AT_LEAST = 16  # entries of lost replicas that every change removes; twice its own size if that is more


class IndexState(enum.Enum):
    SYNCED = "synced"  # equal to the replica's cache, as of its last frame
    BLIND = "blind"  # no complete snapshot: only expectations count


@dataclass(slots=True, eq=False)
class _Slot:
    """One generation of one replica. `held` is its truth per medium, `expected` names the dispatch behind each."""

    replica: str
    bit: int
    state: IndexState = IndexState.BLIND
    held: dict[str, set[bytes]] = field(default_factory=dict)
    expected: dict[bytes, int] = field(default_factory=dict)
    overfull: bool = False  # it held more than the bound: nothing of it counts until the next snapshot

    def num_held(self) -> int:
        return sum(map(len, self.held.values()))


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
        self._exact: dict[bytes, int] = {}
        self._expected: dict[bytes, int] = {}
        self._slots: dict[str, _Slot] = {}
        self._owners: dict[int, _Slot] = {}  # every bit in use, lost replicas' included
        self._free_bits: list[int] = []
        self._lost: deque[_Slot] = deque()
        self._live = 0  # bits of connected replicas
        self._synced = 0  # those among them whose exact entries count
        self._expectations: OrderedDict[int, _Expectation] = OrderedDict()  # oldest first
        self._next_expectation = 0

    # Replicas come and go

    def connect(self, replica: str) -> None:
        """The replica counts from now on, BLIND until its snapshot ends."""
        assert replica not in self._slots, f"replica {replica} is already connected"
        self._take_slot(replica)

    def disconnect(self, replica: str) -> None:
        """The replica holds nothing any more. Costs the same whatever it held."""
        slot = self._slots.pop(replica, None)
        if slot is not None:
            self._retire(slot)

    def blind(self, replica: str) -> None:
        """Forget what the replica holds until its next snapshot; expectations stay."""
        self._renew(replica)

    def begin_snapshot(self, replica: str) -> None:
        self._renew(replica)

    def add_to_snapshot(self, replica: str, digests: bytes, medium: str = GPU) -> None:
        slot = self._slots[replica]
        assert slot.state is IndexState.BLIND, "a snapshot is added to between its begin and its end"
        if not slot.overfull:
            self._store(slot, split_digests(digests), medium)

    def end_snapshot(self, replica: str) -> None:
        slot = self._slots[replica]
        if not slot.overfull:
            slot.state = IndexState.SYNCED
            self._synced |= slot.bit

    def apply(self, replica: str, event: KvEvent) -> None:
        """One event, in the order in which it happened. A BLIND replica's are ignored: its snapshot has them."""
        slot = self._slots[replica]
        if slot.state is IndexState.BLIND:
            return
        if isinstance(event, Stored):
            self._store(slot, split_digests(event.digests), event.medium)
        elif isinstance(event, Removed):
            self._remove(slot, split_digests(event.digests), event.medium)
        else:
            assert isinstance(event, Cleared), f"unknown KV event {event!r}"
            self._renew(replica, state=IndexState.SYNCED)

    # What a dispatch will make true

    def expect(self, replica: str, digests: Sequence[bytes], now: float) -> int:
        """The replica will soon hold these: count them already. Returns the number under which to withdraw."""
        slot, number = self._slots[replica], self._next_expectation
        self._next_expectation += 1
        bit, exact, expected = slot.bit, self._exact, self._expected
        missing = [digest for digest in digests if not exact.get(digest, 0) & bit]
        for digest in missing:
            slot.expected[digest] = number
            expected[digest] = expected.get(digest, 0) | bit
        self._expectations[number] = _Expectation(replica, missing, now + self._expectation_ttl_s)
        self._sweep(len(missing))
        return number

    def withdraw(self, number: int) -> None:
        """What has not come true of this expectation, and that no later one repeats, is no longer expected."""
        expectation = self._expectations.pop(number, None)
        slot = self._slots.get(expectation.replica) if expectation is not None else None
        if expectation is None or slot is None:
            return
        for digest in expectation.digests:
            if slot.expected.get(digest) == number:
                self._confirm(slot, digest)

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
        exact, expected, synced, alive = self._exact.get, self._expected.get, self._synced, self._live
        for depth, digest in enumerate(digests):
            holding = alive & (exact(digest, 0) & synced | expected(digest, 0))
            if holding != alive:
                self._note(depths, alive ^ holding, depth)
                alive = holding
                if not alive:
                    return depths
        self._note(depths, alive, len(digests))
        return depths

    def state(self, replica: str) -> IndexState:
        slot = self._slots.get(replica)
        return IndexState.BLIND if slot is None else slot.state

    def num_blocks(self, replica: str) -> int:
        """Exact entries, each medium's counted."""
        slot = self._slots.get(replica)
        return 0 if slot is None else slot.num_held()

    @property
    def num_entries(self) -> int:
        """Digests in memory, those of lost replicas that are not swept yet included."""
        return len(self._exact) + len(self._expected)

    def check_integrity(self) -> None:
        """Recompute every mask from the slots; for tests."""
        exact: dict[bytes, int] = {}
        expected: dict[bytes, int] = {}
        for slot in [*self._slots.values(), *self._lost]:
            for digest in set().union(*slot.held.values()):
                exact[digest] = exact.get(digest, 0) | slot.bit
            for digest in slot.expected:
                expected[digest] = expected.get(digest, 0) | slot.bit
            assert self._owners.get(slot.bit) is slot, "a bit belongs to its slot alone"
        assert exact == self._exact, "the masks differ from what the replicas hold"
        assert expected == self._expected, "the masks differ from what is expected of the replicas"
        live = sum(slot.bit for slot in self._slots.values())
        synced = sum(slot.bit for slot in self._slots.values() if slot.state is IndexState.SYNCED)
        assert (live, synced) == (self._live, self._synced), "the live masks differ from the slots"
        assert not set(self._free_bits) & set(self._owners), "a bit in use is free"
        for replica, slot in self._slots.items():
            assert slot.replica == replica, "a slot is filed under its replica"
            assert set(slot.expected.values()) <= set(self._expectations), (
                "an expectation has lost its expiry"
            )
            assert slot.state is IndexState.BLIND or not any(
                digest in held for digest in slot.expected for held in slot.held.values()
            ), "a held block is not expected any more"

    # Slots

    def _take_slot(self, replica: str) -> _Slot:
        bit = self._free_bits.pop() if self._free_bits else 1 << len(self._owners)
        slot = self._slots[replica] = self._owners[bit] = _Slot(replica, bit)
        self._live |= bit
        return slot

    def _retire(self, slot: _Slot) -> None:
        self._live &= ~slot.bit
        self._synced &= ~slot.bit
        self._lost.append(slot)
        self._sweep(0)

    def _renew(self, replica: str, state: IndexState = IndexState.BLIND) -> None:
        """A new generation that holds nothing, of which the same is expected."""
        old = self._slots.pop(replica)
        new = self._take_slot(replica)
        for digest in old.expected:
            self._expected[digest] ^= old.bit | new.bit
        new.expected, old.expected = old.expected, {}
        self._retire(old)
        new.state = state
        if state is IndexState.SYNCED:
            self._synced |= new.bit

    def _sweep(self, num_changes: int) -> None:
        """Take some lost replicas' entries out, faster than changes add any, so that memory stays bounded."""
        budget = max(_SWEEP_AT_LEAST, 2 * num_changes)
        while self._lost and budget > 0:
            slot = self._lost[0]
            budget -= self._sweep_slot(slot, budget)
            if not slot.held and not slot.expected:
                self._lost.popleft()
                del self._owners[slot.bit]
                self._free_bits.append(slot.bit)

    def _sweep_slot(self, slot: _Slot, budget: int) -> int:
        """Take up to `budget` entries of a lost slot out; returns how many."""
        swept = 0
        while slot.expected and swept < budget:
            self._clear(self._expected, slot.expected.popitem()[0], slot.bit)
            swept += 1
        while slot.held and swept < budget:
            medium, held = next(iter(slot.held.items()))
            if held:
                self._clear(self._exact, held.pop(), slot.bit)
                swept += 1
            else:
                del slot.held[medium]
        return swept

    # Entries

    def _store(self, slot: _Slot, digests: Iterable[bytes], medium: str) -> None:
        held, exact, bit = slot.held.setdefault(medium, set()), self._exact, slot.bit
        before = len(held)
        for digest in digests:
            held.add(digest)
            exact[digest] = exact.get(digest, 0) | bit
            if digest in slot.expected:
                self._confirm(slot, digest)
        self._sweep(len(held) - before)
        if slot.num_held() > self._max_blocks_per_replica:
            self._renew(slot.replica)
            self._slots[slot.replica].overfull = True

    def _remove(self, slot: _Slot, digests: Iterable[bytes], medium: str) -> None:
        held = slot.held.get(medium, set())
        for digest in digests:
            if digest in held:
                held.discard(digest)
                if not any(digest in others for others in slot.held.values()):
                    self._clear(self._exact, digest, slot.bit)

    def _confirm(self, slot: _Slot, digest: bytes) -> None:
        del slot.expected[digest]
        self._clear(self._expected, digest, slot.bit)

    @staticmethod
    def _clear(masks: dict[bytes, int], digest: bytes, bit: int) -> None:
        rest = masks.get(digest, 0) & ~bit
        if rest:
            masks[digest] = rest
        else:
            masks.pop(digest, None)

    def _note(self, depths: dict[str, int], bits: int, depth: int) -> None:
        while depth and bits:
            lowest = bits & -bits
            depths[self._owners[lowest].replica] = depth
            bits ^= lowest
