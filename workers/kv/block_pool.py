"""All blocks of a replica: who uses them, which are free, and in which order free ones are reused.

Called by `kv_cache.py`. It knows that a block may hold a cached prefix, not what that is: whoever does is asked
through `evict` when such a block is reused. Block 0 is the null block, which is never handed out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from workers.kv.block import Block
from workers.kv.free_list import FreeList


class BlockPool:
    """`evict` drops what a block holds, and answers with the other blocks that this made useless."""

    __slots__ = ("_evict", "_free", "blocks", "num_cached")

    def __init__(self, num_blocks: int, evict: Callable[[Block], Iterable[Block]]) -> None:
        assert num_blocks > 1, "a pool needs the null block and at least one other"
        self.blocks = tuple(Block(number) for number in range(num_blocks))
        self.num_cached = 0  # free blocks that can still be hit
        self._evict = evict
        self._free = FreeList()
        self.blocks[0].ref_count = 1  # the null block: in use for ever
        for block in self.blocks[1:]:
            self._free.append(block)

    @property
    def num_usable(self) -> int:
        return len(self.blocks) - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_usable - len(self._free)

    def allocate(self, hits: Sequence[Block], count: int, reserve: int = 0) -> list[Block] | None:
        """Share `hits` and take `count` other blocks, or touch nothing and answer None.

        `reserve` blocks must be left over.
        """
        free_hits = sum(block.ref_count == 0 for block in hits)
        if free_hits + count + reserve > len(self._free):
            return None
        self.share(hits)
        return [self.take() for _ in range(count)]

    def take(self) -> Block:
        """The free block that is reused first. There must be one."""
        block = self._free.pop_first()
        if block.node is not None:
            self.num_cached -= 1
            for useless in self._evict(block):
                # Nobody uses it: a user of it would use the evicted block's prefix too.
                self._free.remove(useless)
                self._free.prepend(useless)
                self.num_cached -= 1
        block.ref_count = 1
        return block

    def share(self, blocks: Iterable[Block]) -> None:
        """One more user for each."""
        for block in blocks:
            if block.ref_count == 0:
                self._free.remove(block)
                self.num_cached -= block.node is not None
            block.ref_count += 1

    def release(self, blocks: Sequence[Block]) -> None:
        """One user less for each of a table's blocks. Chain tails are reused before their heads."""
        for block in reversed(blocks):
            assert block.ref_count > 0, f"{block} is released more often than taken"
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.node is None:
                    self._free.prepend(block)
                else:
                    self._free.append(block)
                    self.num_cached += 1

    def refresh(self, blocks: Sequence[Block]) -> None:
        """Cached blocks that will be hit soon go to the tail, last block first."""
        for block in reversed(blocks):
            if block.ref_count == 0:
                self._free.remove(block)
                self._free.append(block)

    def forget_cached(self) -> None:
        """The cache has dropped everything that free blocks held."""
        assert self.num_used == 0, "blocks in use cannot be forgotten"
        self.num_cached = 0

    def check_integrity(self, holders: Iterable[Sequence[Block]]) -> None:
        """`holders`: every list of blocks that somebody holds, block by block."""
        self._free.check_integrity()
        held = Counter(block.id for blocks in holders for block in blocks)
        held[0] += 1
        free = {block.id for block in self._free}
        for number, block in enumerate(self.blocks):
            assert block.id == number, f"{block} stands at place {number}"
            assert block.ref_count == held[number], f"{block} has {held[number]} holders"
            assert (block.ref_count == 0) == (number in free), f"{block}: free list and count disagree"
        cached = sum(block.node is not None for block in self._free)
        assert cached == self.num_cached, f"{self.num_cached} cached blocks counted, {cached} found"
        assert self.blocks[0].node is None, "the null block holds a prefix"
