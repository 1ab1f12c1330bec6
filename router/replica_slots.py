"""Who holds which digest: one bit a replica in every digest's mask. The tables under `prefix_index.py`.

A replica owns one bit, its *slot*. To lose a replica, or all that it holds, is to take its bit out of the live mask,
at once; the bit is swept out of the digests' masks a little at every later change, and only then given to another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

_SWEEP_AT_LEAST = 16  # stale entries that every change removes; twice its own size if that is more


@dataclass(slots=True, eq=False)
class Slot:
    """One generation of one replica. `held` is its truth per medium, `expected` names the dispatch behind each."""

    replica: str
    bit: int
    synced: bool = False  # what it holds counts
    overfull: bool = False  # it held more than the bound: nothing of it counts until the next snapshot
    held: dict[str, set[bytes]] = field(default_factory=dict)
    expected: dict[bytes, int] = field(default_factory=dict)

    def num_held(self) -> int:
        return sum(map(len, self.held.values()))


class ReplicaSlots:
    """`exact` and `expected` map a digest to the bits of those that hold it or soon will, stale bits included."""

    def __init__(self) -> None:
        self.exact: dict[bytes, int] = {}
        self.expected: dict[bytes, int] = {}
        self.live = 0  # bits of connected replicas
        self.synced = 0  # those among them whose exact entries count
        self._current: dict[str, Slot] = {}
        self._owners: dict[int, Slot] = {}  # of every bit in use, stale ones included
        self._free_bits: list[int] = []
        self._stale: deque[Slot] = deque()

    def __getitem__(self, replica: str) -> Slot:
        return self._current[replica]

    def get(self, replica: str) -> Slot | None:
        return self._current.get(replica)

    def owner(self, bit: int) -> str:
        return self._owners[bit].replica

    # Generations

    def take(self, replica: str) -> Slot:
        assert replica not in self._current, f"replica {replica} has a slot already"
        bit = self._free_bits.pop() if self._free_bits else 1 << len(self._owners)
        slot = self._current[replica] = self._owners[bit] = Slot(replica, bit)
        self.live |= bit
        return slot

    def give_back(self, replica: str) -> None:
        """Costs the same whatever the replica holds."""
        self._retire(self._current.pop(replica))

    def renew(self, replica: str) -> Slot:
        """A new generation that holds nothing, is not synced, and of which the same is expected."""
        old = self._current.pop(replica)
        new = self.take(replica)  # before the old bit is swept and free, so that they differ
        for digest in old.expected:
            self.expected[digest] ^= old.bit | new.bit
        new.expected, old.expected = old.expected, {}
        self._retire(old)
        return new

    def _retire(self, slot: Slot) -> None:
        self.live &= ~slot.bit
        self.synced &= ~slot.bit
        self._stale.append(slot)
        self.sweep(0)

    def sync(self, slot: Slot) -> None:
        slot.synced = True
        self.synced |= slot.bit

    # Entries

    def hold(self, slot: Slot, digests: Iterable[bytes], medium: str) -> None:
        """What was expected among them is expected no longer: it has come true."""
        held, exact, expected, bit = slot.held.setdefault(medium, set()), self.exact, slot.expected, slot.bit
        before = len(held)
        for digest in digests:
            held.add(digest)
            exact[digest] = exact.get(digest, 0) | bit
            if digest in expected:
                self.expect_no_more(slot, digest)
        self.sweep(len(held) - before)

    def drop(self, slot: Slot, digests: Iterable[bytes], medium: str) -> None:
        """Those that it does not hold on that medium are passed over."""
        held, exact = slot.held.get(medium, set()), self.exact
        elsewhere = [others for other, others in slot.held.items() if other != medium and others]
        for digest in digests:
            if digest in held:
                held.remove(digest)
                if not elsewhere or not any(digest in others for others in elsewhere):
                    _clear(exact, digest, slot.bit)

    def expect(self, slot: Slot, digests: Iterable[bytes], number: int) -> list[bytes]:
        """Those that it does not hold yet are expected from now on, under this dispatch's number."""
        bit, exact, expected = slot.bit, self.exact, self.expected
        missing = [digest for digest in digests if not exact.get(digest, 0) & bit]
        for digest in missing:
            slot.expected[digest] = number
            expected[digest] = expected.get(digest, 0) | bit
        self.sweep(len(missing))
        return missing

    def expect_no_more(self, slot: Slot, digest: bytes) -> None:
        del slot.expected[digest]
        _clear(self.expected, digest, slot.bit)

    # Stale slots

    def sweep(self, num_changes: int) -> None:
        """Take some stale entries out, faster than changes add new ones, so that memory stays bounded."""
        budget = max(_SWEEP_AT_LEAST, 2 * num_changes)
        while self._stale and budget > 0:
            slot = self._stale[0]
            budget -= self._sweep_slot(slot, budget)
            if not slot.held and not slot.expected:
                self._stale.popleft()
                del self._owners[slot.bit]
                self._free_bits.append(slot.bit)

    def _sweep_slot(self, slot: Slot, budget: int) -> int:
        """Take up to `budget` entries of a stale slot out; returns how many."""
        swept = 0
        while slot.expected and swept < budget:
            _clear(self.expected, slot.expected.popitem()[0], slot.bit)
            swept += 1
        while slot.held and swept < budget:
            medium, held = next(iter(slot.held.items()))
            if held:
                _clear(self.exact, held.pop(), slot.bit)
                swept += 1
            else:
                del slot.held[medium]
        return swept

    def check_integrity(self) -> None:
        """Recompute every mask from the slots; for tests."""
        exact: dict[bytes, int] = {}
        expected: dict[bytes, int] = {}
        for slot in [*self._current.values(), *self._stale]:
            for digest in set().union(*slot.held.values()):
                exact[digest] = exact.get(digest, 0) | slot.bit
            for digest in slot.expected:
                expected[digest] = expected.get(digest, 0) | slot.bit
            assert self._owners.get(slot.bit) is slot, "a bit belongs to its slot alone"
        assert exact == self.exact, "the masks differ from what the replicas hold"
        assert expected == self.expected, "the masks differ from what is expected of the replicas"
        assert self.live == sum(slot.bit for slot in self._current.values()), "the live mask is wrong"
        synced = sum(slot.bit for slot in self._current.values() if slot.synced)
        assert self.synced == synced, "the synced mask is wrong"
        assert len(self._owners) == len(self._current) + len(self._stale), "a bit in use has no slot"
        assert not set(self._free_bits) & set(self._owners), "a bit in use is free"
        for replica, slot in self._current.items():
            assert slot.replica == replica, "a slot is filed under its replica"
            held: set[bytes] = set().union(*slot.held.values())
            assert not held & set(slot.expected), "what is held is not expected any more"


def _clear(masks: dict[bytes, int], digest: bytes, bit: int) -> None:
    rest = masks.get(digest, 0) & ~bit
    if rest:
        masks[digest] = rest
    else:
        masks.pop(digest, None)
