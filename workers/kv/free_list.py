"""The queue of free blocks: an intrusive doubly linked list, O(1) everywhere. Used by `block_pool.py` alone.

The head is reused first. It knows nothing of what blocks hold.
"""

from __future__ import annotations

from collections.abc import Iterator

from workers.kv.block import Block


class FreeList:
    """A ring through an anchor that is no real block, so that no end is a special case."""

    __slots__ = ("_anchor", "_length")

    def __init__(self) -> None:
        self._anchor = Block(0)
        self._anchor.previous = self._anchor.following = self._anchor
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Block]:
        """From the head. The list must not change meanwhile."""
        block = self._anchor.following
        while block is not self._anchor:
            assert block is not None, "a free block has no follower"
            yield block
            block = block.following

    def pop_first(self) -> Block:
        first = self._anchor.following
        assert first is not None and first is not self._anchor, "the free list is empty"
        self.remove(first)
        return first

    def append(self, block: Block) -> None:
        """To the tail: reused last."""
        last = self._anchor.previous
        assert last is not None, "the free list's ring is broken"
        self._link(last, block, self._anchor)

    def prepend(self, block: Block) -> None:
        """To the head: reused first."""
        first = self._anchor.following
        assert first is not None, "the free list's ring is broken"
        self._link(self._anchor, block, first)

    def remove(self, block: Block) -> None:
        previous, following = block.previous, block.following
        assert previous is not None and following is not None, f"{block} is not in the free list"
        previous.following, following.previous = following, previous
        block.previous = block.following = None
        self._length -= 1

    def _link(self, previous: Block, block: Block, following: Block) -> None:
        assert block.previous is None, f"{block} is in the free list already"
        previous.following = following.previous = block
        block.previous, block.following = previous, following
        self._length += 1

    def check_integrity(self) -> None:
        count = 0
        for block in self:
            assert block.following is not None and block.following.previous is block, f"bad link at {block}"
            count += 1
            assert count <= self._length, "the free list holds more blocks than it counts"
        assert count == self._length, f"the free list counts {self._length} blocks and holds {count}"
