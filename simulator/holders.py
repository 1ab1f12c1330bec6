"""Which replicas hold which blocks, and the match of a prompt at all of them in one walk.

Used by `block_cache.py` for what is cached and by policies for what they believe to be. A block's holders are the
bits of one integer; a replica that holds a block holds the ones before it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Holders:
    __slots__ = ("masks", "num_replicas")

    def __init__(self, num_replicas: int) -> None:
        self.num_replicas = num_replicas
        self.masks: dict[int, int] = {}  # block -> bit i: replica i

    def add(self, block: int, replica: int) -> None:
        self.masks[block] = self.masks.get(block, 0) | 1 << replica

    def discard(self, block: int, replica: int) -> None:
        left = self.masks.get(block, 0) & ~(1 << replica)
        if left:
            self.masks[block] = left
        else:
            self.masks.pop(block, None)

    def match(self, blocks: Sequence[int]) -> list[int]:
        """For each replica, how many of the first blocks it holds."""
        return match_any((self.masks,), blocks, self.num_replicas)


def match_any(masks: Sequence[Mapping[int, int]], blocks: Sequence[int], num_replicas: int) -> list[int]:
    """For each replica, how many of the first blocks it holds by one of `masks` or another."""
    depths = [0] * num_replicas
    alive = (1 << num_replicas) - 1
    depth = 0
    for block in blocks:
        holders = 0
        for mask in masks:
            holders |= mask.get(block, 0)
        lost = alive & ~holders
        while lost:
            low = lost & -lost
            depths[low.bit_length() - 1] = depth
            lost ^= low
        alive &= holders
        if not alive:
            return depths
        depth += 1
    while alive:
        low = alive & -alive
        depths[low.bit_length() - 1] = depth
        alive ^= low
    return depths
