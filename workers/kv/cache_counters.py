"""What lookups in the prefix cache came to, in tokens, as counters that only grow.

Filled by `kv_cache.py` when a sequence is admitted, read for the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheCounters:
    """`queried` is the sum of all the others."""

    queried: int = 0
    hit: int = 0
    below_block: int = 0  # missed: the tail that no full block holds, the last token always in it
    bypassed: int = 0  # missed: the request asked not to read the cache
    evicted: int = 0  # missed: was there not long ago
    absent: int = 0  # missed: never seen, or forgotten

    def check_integrity(self) -> None:
        parts = self.hit + self.below_block + self.bypassed + self.evicted + self.absent
        assert self.queried == parts, f"{self.queried} tokens queried, {parts} accounted for"
