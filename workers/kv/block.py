"""One block of the pool as the host sees it: a number, who uses it, and which cached prefix it holds.

Owned by `block_pool.py`, linked by `free_list.py`, given its `node` by `prefix_cache.py`. The KV itself lies with
the runner, under the same number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.kv.prefix_cache import PrefixNode


class Block:
    """Made once at start, never again. `previous` and `following` belong to the free list."""

    __slots__ = ("following", "id", "node", "previous", "ref_count")

    def __init__(self, number: int) -> None:
        self.id = number
        self.ref_count = 0
        self.node: PrefixNode | None = None  # what a lookup can find in it
        self.previous: Block | None = None
        self.following: Block | None = None

    def __repr__(self) -> str:
        return f"Block({self.id}, ref_count={self.ref_count}, cached={self.node is not None})"
