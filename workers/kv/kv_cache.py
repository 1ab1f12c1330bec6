"""A replica's KV memory as the scheduler sees it: block tables that start with whatever is cached already.

Brings `block_pool.py` and `prefix_cache.py` together; called by `scheduler.py`. It knows block tables and token
ids, not requests, rows or steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from protocol.block_hash import DIGEST_BYTES, BlockHasher
from protocol.messages import CacheCounts
from protocol.tokens import TOKEN_BYTES, pack_tokens
from workers.kv.block import Block
from workers.kv.block_pool import BlockPool
from workers.kv.block_table import BlockTable
from workers.kv.prefix_cache import PrefixCache, PrefixNode

REMEMBERED_PER_BLOCK = 4  # digests of evicted blocks kept for the counters


class KvCache:
    """`enabled=False` hashes, looks up and registers nothing."""

    __slots__ = ("block_size", "counts", "enabled", "hasher", "pool", "prefixes", "resumed_counts")

    def __init__(self, num_blocks: int, hasher: BlockHasher, enabled: bool = True) -> None:
        self.hasher = hasher
        self.block_size = hasher.block_size
        self.enabled = enabled
        self.prefixes = PrefixCache(REMEMBERED_PER_BLOCK * num_blocks)
        self.pool = BlockPool(num_blocks, self.prefixes.forget)
        self.counts = CacheCounts()
        self.resumed_counts = CacheCounts()  # lookups of sequences that were preempted

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def table(self, tokens: array[int], digests: list[bytes], extra: bytes) -> BlockTable:
        """An empty table for a sequence; `digests` are those of its head that are known already."""
        if not self.enabled:
            return BlockTable([], extra)
        self.hasher.extend(digests, pack_tokens(tokens), extra)
        return BlockTable(digests, extra)

    def lookup(self, table: BlockTable, tokens: array[int]) -> list[PrefixNode]:
        """What of `tokens` is cached now. The last token is always left to be recomputed."""
        limit = (len(tokens) - 1) // self.block_size
        if not self.enabled or limit == 0:
            return []
        packed = pack_tokens(tokens[: limit * self.block_size])
        self.hasher.extend(table.digests, packed, table.extra)
        return self.prefixes.match(table.digests, self._split(packed), table.extra)

    def num_cached_tokens(self, table: BlockTable, num_tokens: int, guess: int) -> int:
        """What `lookup` would find of `num_tokens`, nothing compared and so cheap; `guess`: what it was before."""
        limit = min((num_tokens - 1) // self.block_size, len(table.digests))
        return self.prefixes.reach(table.digests, guess // self.block_size, limit) * self.block_size

    def admit(
        self, table: BlockTable, tokens: array[int], matched: list[PrefixNode], reserve: int = 0
    ) -> bool:
        """Give an empty table the matched blocks and new ones for the rest, or touch nothing."""
        assert not table.blocks, "only an empty table can be admitted"
        hits = [node.block for node in matched]
        fresh = self.pool.allocate(hits, self.num_blocks_for(len(tokens)) - len(hits), reserve)
        if fresh is None:
            return False
        self._open(table, hits, fresh)
        return True

    def fork(
        self, table: BlockTable, tokens: array[int], prompt: list[Block], num_shared_tokens: int, reserve: int
    ) -> list[tuple[int, int]] | None:
        """Start an empty table on `prompt`'s full blocks and a copy of its partial one, or touch nothing.

        Answers with the copies, as (source, destination), that make `num_shared_tokens` tokens' KV exist.
        """
        assert not table.blocks, "only an empty table can be forked"
        num_shared, rest = divmod(num_shared_tokens, self.block_size)
        shared = prompt[:num_shared]
        fresh = self.pool.allocate(shared, self.num_blocks_for(len(tokens)) - num_shared, reserve)
        if fresh is None:
            return None
        self._open(table, shared, fresh)
        return [(prompt[num_shared].id, fresh[0].id)] if rest else []

    def grow(self, table: BlockTable) -> bool:
        """One more block at the end, or touch nothing."""
        if not self.pool.num_free:
            return False
        table.blocks.append(self.pool.take())
        return True

    def fill(self, table: BlockTable, tokens: array[int], num_computed: int) -> None:
        """The KV of `num_computed` tokens exists, or will when the step being planned has run."""
        if not (self.enabled and table.chained):
            return
        size, first, end = self.block_size, table.num_registered, num_computed // self.block_size
        if first >= end:
            return
        packed, stride = pack_tokens(tokens[first * size : end * size]), size * TOKEN_BYTES
        for index in range(first, end):
            content = packed[(index - first) * stride : (index - first + 1) * stride]
            node = self.prefixes.register(
                table.tip, self._digest(table, index, content), content, table.extra, table.blocks[index]
            )
            if node is None:
                table.chained = False
                return
            table.tip = node
            table.num_registered = index + 1

    def release(self, table: BlockTable) -> None:
        """Give all blocks back. The digests stay known."""
        self.pool.release(table.blocks)
        table.clear()

    def hold(self, table: BlockTable, num_tokens: int) -> list[Block]:
        """One more use of the blocks of the first `num_tokens`; whoever asks gives it back to the pool."""
        held = table.blocks[: self.num_blocks_for(num_tokens)]
        self.pool.share(held)
        return held

    def count(self, table: BlockTable, num_tokens: int, num_hits: int, resumed: bool, bypassed: bool) -> None:
        """An admitted sequence's lookup, in tokens."""
        if not self.enabled:
            return
        counts = (
            CacheCounts(num_tokens, bypassed=num_tokens)
            if bypassed
            else self._counts(table, num_tokens, num_hits)
        )
        if resumed:
            self.resumed_counts += counts
        else:
            self.counts += counts

    def _counts(self, table: BlockTable, num_tokens: int, num_hits: int) -> CacheCounts:
        size = self.block_size
        limit = (num_tokens - 1) // size
        num_evicted = sum(map(self.prefixes.was_evicted, table.digests[num_hits:limit]))
        return CacheCounts(
            queried=num_tokens,
            hit=num_hits * size,
            below_block=num_tokens - limit * size,
            evicted=num_evicted * size,
            absent=(limit - num_hits - num_evicted) * size,
        )

    def touch(self, digests: bytes) -> None:
        """Cached blocks that a request on its way will hit. What does not divide by sixteen is left out."""
        starts = range(0, len(digests) - DIGEST_BYTES + 1, DIGEST_BYTES)
        self.pool.refresh(self.prefixes.find(digests[at : at + DIGEST_BYTES] for at in starts))

    def refresh(self, table: BlockTable, num_cached_tokens: int) -> None:
        """The same for the blocks of that many tokens, the first of a table that waits for its turn."""
        self.pool.refresh(self.prefixes.find(table.digests[: num_cached_tokens // self.block_size]))

    def reset(self) -> int:
        """Forget every prefix. Refused while blocks are in use: answers how many are, 0 when it is done."""
        if self.pool.num_used == 0:
            self.prefixes.clear()
            self.pool.forget_cached()
        return self.pool.num_used

    def _open(self, table: BlockTable, shared: list[Block], fresh: list[Block]) -> None:
        table.blocks = shared + fresh
        table.tip = shared[-1].node if shared else None
        table.num_registered = len(shared) if table.tip else 0
        # A fork of blocks that could not be registered: nothing behind them can be either.
        table.chained = table.num_registered == len(shared)

    def _digest(self, table: BlockTable, index: int, content: bytes) -> bytes:
        digests = table.digests
        if index == len(digests):
            digests.append(self.hasher.next_digest(digests[-1] if digests else None, content, table.extra))
        return digests[index]

    def _split(self, packed: bytes) -> Iterator[bytes]:
        stride = self.block_size * TOKEN_BYTES
        return (packed[start : start + stride] for start in range(0, len(packed), stride))

    def check_integrity(self, tables: Iterable[BlockTable], held: Iterable[Sequence[Block]] = ()) -> None:
        """`tables` and `held`: everything that uses blocks."""
        tables = list(tables)
        self.pool.check_integrity([*(table.blocks for table in tables), *held])
        self.prefixes.check_integrity(self.pool.blocks)
        for counts in (self.counts, self.resumed_counts):
            parts = counts.hit + counts.below_block + counts.bypassed + counts.evicted + counts.absent
            assert counts.queried == parts, f"{counts.queried} tokens queried, {parts} accounted for"
        for table in tables:
            nodes = [block.node for block in table.blocks[: table.num_registered]]
            parents = [None, *nodes[:-1]] if nodes else []
            assert all(node and node.parent is up for node, up in zip(nodes, parents, strict=True)), (
                "a table's registered blocks are no chain"
            )
            assert table.tip is (nodes[-1] if nodes else None), "a table's tip is not its last node"
