"""What a simulated replica has cached: whole blocks by id, reused leaf first, least recently used first.

The product's pool and prefix cache follow the same rules token by token, which is too slow for a fleet; a test runs
both over one trace and compares the hits. Used by `replica.py`; several replicas may share one. Three simplifications:
equal content is kept once, a prefill takes its blocks when it ends, not when it begins, and memory is never exhausted:
while all blocks are in use, more are taken than there are, and given back first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from simulator.holders import Holders


class BlockCache:
    """Blocks in use are pinned. A pin of a block pins the ones before it too, so leaves are always free first."""

    __slots__ = ("_free", "_holders", "_pins", "_replicas", "capacity")

    def __init__(self, capacity: int, holders: Holders, replicas: Sequence[int]) -> None:
        assert capacity > 0, "a cache needs at least one block"
        self.capacity = capacity  # in blocks
        self._holders = holders  # told of every block that comes or goes
        self._replicas = replicas  # whose cache this is
        self._pins: dict[int, int] = {}  # every cached block -> how many use it
        self._free: OrderedDict[int, None] = OrderedDict()  # those that nobody uses, next to be reused first

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def num_pinned(self) -> int:
        return len(self._pins) - len(self._free)

    def reach(self, blocks: Sequence[int], guess: int = 0) -> int:
        """How many of a chain's first blocks are cached; a right guess makes it two lookups."""
        pins, depth = self._pins, min(guess, len(blocks))
        while depth > 0 and blocks[depth - 1] not in pins:
            depth -= 1
        while depth < len(blocks) and blocks[depth] in pins:
            depth += 1
        return depth

    def pin(self, blocks: Sequence[int]) -> None:
        """One more user for each of a cached chain's blocks."""
        for block in blocks:
            users = self._pins[block]
            if users == 0:
                del self._free[block]
            self._pins[block] = users + 1

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each; chain tails are reused before their heads."""
        for block in reversed(blocks):
            users = self._pins[block] - 1
            assert users >= 0, f"block {block} is released more often than pinned"
            self._pins[block] = users
            if users == 0:
                self._free[block] = None
        while len(self._pins) > self.capacity and self._free:
            self._evict()

    def insert(self, blocks: Sequence[int], num_pinned: int) -> None:
        """A chain has been computed, whose first `num_pinned` blocks its user has pinned: pin the others too."""
        for block in blocks[num_pinned:]:
            if block in self._pins:
                self.pin((block,))
                continue
            if len(self._pins) >= self.capacity and self._free:
                self._evict()
            self._pins[block] = 1
            for replica in self._replicas:
                self._holders.add(block, replica)

    def touch(self, blocks: Sequence[int]) -> None:
        """Cached blocks that will be hit soon are reused last."""
        free = self._free
        for block in reversed(blocks):
            if block in free:
                free.move_to_end(block)

    def _evict(self) -> None:
        block, _ = self._free.popitem(last=False)
        del self._pins[block]
        for replica in self._replicas:
            self._holders.discard(block, replica)

    def check_integrity(self) -> None:
        assert len(self._pins) <= self.capacity or not self._free, (
            "unused blocks beyond what there is room for"
        )
        unused = {block for block, users in self._pins.items() if users == 0}
        assert unused == self._free.keys(), "pins and the order of reuse disagree"
        for block in self._pins:
            held = self._holders.masks.get(block, 0)
            assert all(held >> replica & 1 for replica in self._replicas), f"block {block} is not announced"
