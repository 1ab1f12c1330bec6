"""One sequence's blocks, and how far their content has been hashed and registered.

Owned by a sequence, changed by `kv_cache.py` alone. Append-only until all of it is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.kv.block import Block

if TYPE_CHECKING:
    from workers.kv.prefix_cache import PrefixNode


class BlockTable:
    """Blocks [0, num_registered) can be hit by others, `tip` is the last of them.

    tokens    |--- registered ---|--- computed, not full ---|--- to be computed ---|
    digests   |----- known for every full block hashed so far: outlive the blocks -----|
    """

    __slots__ = ("blocks", "chained", "digests", "extra", "num_registered", "num_shown", "tip")

    def __init__(self, digests: list[bytes], extra: bytes) -> None:
        self.digests = digests
        self.extra = extra
        self.clear()

    def clear(self) -> None:
        self.blocks: list[Block] = []
        self.num_registered = 0
        self.tip: PrefixNode | None = None
        self.chained = True  # False after a collision: nothing behind it can be registered
        self.num_shown = 0  # blocks that the runner has been told of

    def take_new_blocks(self) -> tuple[int, ...]:
        """The blocks appended since the last call."""
        fresh = tuple([block.id for block in self.blocks[self.num_shown :]])
        self.num_shown = len(self.blocks)
        return fresh
