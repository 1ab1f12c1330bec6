"""Attention of each row's newest tokens over the keys and values that they see, read through its block table.

    out[t] = softmax(score(q[t], K) + mask[t]) V        per head; heads share K and V in groups

`naive_attention.py` is the meaning. `TorchPagedAttention` computes one variant of it on a CPU: what depends on the step
alone (groups, masks, block ids) is planned once, then `run` is called for every layer. Rows that decode come first,
shortest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention_masks import AttentionMasks
from kernels.attention_products import products_of
from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.kv_gather import Fp8Reader, PlainReader, blocks_of_rows, first_of_consecutive

__all__ = ["AttentionPlan", "AttentionVariant", "QueryRow", "TorchPagedAttention"]

_MAX_PADDING = 1.5  # a group's padded blocks to its real ones: beyond, the next row opens a new group
_MAX_GROUP_BYTES = 2 << 20  # of KV gathered at once: it should still be in the cache when it is read
_TILE = 256  # queries of a chunk behind a cached prefix that share one slice of the mask
_SMALL_TILE = (
    64  # where the mask is one per head, or the scores are written out: they should stay in the cache too
)


class _RowRead(NamedTuple):
    """What one row reads: whole blocks of its table. (A step has hundreds: frozen dataclasses take thrice the time.)"""

    row: int  # of the block tables
    start: int  # position of its first query
    num_queries: int
    column: int  # its first query's among the keys of the blocks
    first_block: int  # of its table
    num_blocks: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several queries of one row."""

    first_query: int  # its position
    first_key: int  # position of the first key that is read
    causal: bool  # it starts with the row, and its last query sees all keys: no mask is needed


@dataclass(frozen=True, slots=True)
class _Group:
    """Queries `begin` to `end` of the step that are computed by one call: rows that decode, or one chunk."""

    begin: int
    end: int
    chunk: _Chunk | None  # None: every row has one query, behind all its keys
    num_rows: int
    first_block: int | None  # its blocks lie side by side from here on: no gather
    block_ids: Tensor  # [num_rows · blocks of the widest row] int64
    keys: slice  # of each row's blocks: from the first column that any row sees to the last
    mask: Tensor | None  # of rows, see AttentionMasks.for_rows


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Belongs to the attention that made it."""

    groups: tuple[_Group, ...]


class TorchPagedAttention:
    """Owns scratch memory for gathered blocks and masks. One per variant and runner; not for two threads."""

    def __init__(
        self,
        variant: AttentionVariant,
        dtype: torch.dtype,
        block_size: int,
        token_elements: int,
        fp8_kv: bool = False,
    ) -> None:
        """`token_elements`: of one token's keys and values in one layer of this rank."""
        self._variant = variant
        self._window = variant.window
        self._biased = variant.alibi_slopes is not None
        self._dtype = dtype
        self._block_size = block_size
        self._max_group_blocks = _MAX_GROUP_BYTES // (block_size * token_elements * dtype.itemsize)
        self._blocks = Fp8Reader(dtype) if fp8_kv else PlainReader(dtype)
        self._tile = _tile_for(variant)
        self._masks = AttentionMasks(variant, dtype, self._tile)
        self._products = products_of(variant, dtype)

    def plan(self, rows: Sequence[QueryRow], block_tables: Tensor) -> AttentionPlan:  # [rows, blocks] int64
        reads = [self._row_read(row) for row in rows]
        groups: list[_Group] = []
        begin = index = 0
        while index < len(reads):
            count = 1 if reads[index].num_queries > 1 else self._num_grouped(reads, index)
            group = self._group(reads[index : index + count], begin, block_tables)
            groups.append(group)
            begin, index = group.end, index + count
        return AttentionPlan(tuple(groups))

    def run(
        self,
        q: Tensor,  # [tokens, q_heads, head_dim]
        kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
        plan: AttentionPlan,
        kv_scales: Tensor | None = None,  # [2, kv_heads] fp32, of an fp8 pool
    ) -> Tensor:  # [tokens, q_heads · head_dim]
        parts = [self._attend(q[group.begin : group.end], kv, group, kv_scales) for group in plan.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _row_read(self, row: QueryRow) -> _RowRead:
        first_block = 0 if self._window is None else self._variant.first_key(row.start) // self._block_size
        column = row.start - first_block * self._block_size
        num_blocks = -(-(column + row.num_queries) // self._block_size)
        return _RowRead(row.row, row.start, row.num_queries, column, first_block, num_blocks)

    def _num_grouped(self, reads: Sequence[_RowRead], index: int) -> int:
        """How many rows from `index` on are read together: they are sorted, so neighbours are of like length."""
        real, widest, count = 0, 0, 0
        for read in reads[index:]:
            real += read.num_blocks
            if read.num_blocks > widest:
                widest = read.num_blocks
            padded = widest * (count + 1)
            too_wide = padded > real * _MAX_PADDING or padded > self._max_group_blocks
            if count and (too_wide or read.num_queries > 1):
                break
            count += 1
        return count

    def _group(self, reads: Sequence[_RowRead], begin: int, block_tables: Tensor) -> _Group:
        """One chunk, or rows that have one query each."""
        num_blocks = max([read.num_blocks for read in reads])
        columns = [read.column for read in reads]
        block_ids = blocks_of_rows(
            block_tables, [read.row for read in reads], [read.first_block for read in reads], num_blocks
        )
        num_queries = reads[0].num_queries
        keys = slice(self._variant.first_key(min(columns)), max(columns) + num_queries)
        return _Group(
            begin=begin,
            end=begin + len(reads) * num_queries,
            chunk=self._chunk(reads[0]) if num_queries > 1 else None,
            num_rows=len(reads),
            first_block=first_of_consecutive(block_ids) if len(reads) == 1 else None,
            block_ids=block_ids,
            keys=keys,
            mask=self._masks.for_rows(columns, keys) if num_queries == 1 else None,
        )

    def _chunk(self, read: _RowRead) -> _Chunk:
        sees_all = read.start == 0 and self._variant.first_key(read.num_queries - 1) == 0
        causal = sees_all and not self._variant.changes_scores
        return _Chunk(read.start, self._variant.first_key(read.start), causal)

    def _attend(self, q: Tensor, kv: Tensor, group: _Group, kv_scales: Tensor | None) -> Tensor:
        rows = self._read(kv, group, kv_scales)
        if group.chunk is not None:
            return self._attend_chunk(q, rows, group.chunk)
        # The queries that share a KV head stand as its query rows: one product per head and row.
        packed = q.view(group.num_rows, kv.shape[1], -1, q.shape[2]).transpose(0, 1)
        mask = group.mask
        if self._biased and mask is not None:
            mask = mask.view(len(mask), kv.shape[1], -1, mask.shape[2]).transpose(0, 1)
        out = self._products.of_rows(packed, rows, mask)
        return out.transpose(0, 1).reshape(q.shape[0], -1).to(self._dtype)

    def _read(self, kv: Tensor, group: _Group, kv_scales: Tensor | None) -> Tensor:
        """Keys and values as [2, kv_heads, num_rows, keys, head_dim]."""
        if group.first_block is not None:
            blocks = self._blocks.neighbours(kv, group.first_block, len(group.block_ids))
        else:
            blocks = self._blocks.gather(kv, group.block_ids)
        if kv_scales is not None:
            blocks.mul_(kv_scales[:, :, None, None, None])  # what is read of fp8 is never the pool itself
        rows = blocks.view(2, kv.shape[1], group.num_rows, -1, kv.shape[4])
        return rows[:, :, :, group.keys]

    def _attend_chunk(self, q: Tensor, kv: Tensor, chunk: _Chunk) -> Tensor:
        queries = q.transpose(0, 1)[None]  # [1, q_heads, tokens, head_dim]
        if chunk.causal:
            out = self._products.of_tile(queries, kv, None)
            return out.transpose(1, 2).reshape(q.shape[0], -1)
        tiles = [
            self._attend_tile(tile, kv, chunk.first_query + offset, chunk.first_key)
            for offset, tile in zip(
                range(0, q.shape[0], self._tile), torch.split(queries, self._tile, 2), strict=True
            )
        ]
        out = tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)
        return out.transpose(1, 2).reshape(q.shape[0], -1)

    def _attend_tile(self, queries: Tensor, kv: Tensor, position: int, first_key: int) -> Tensor:
        """`position` is the first query's, `first_key` that of the first key in `kv`."""
        num_queries = queries.shape[2]
        begin, end = self._variant.first_key(position), position + num_queries
        seen = kv[:, :, :, begin - first_key : end - first_key]
        return self._products.of_tile(queries, seen, self._masks.for_tile(position, num_queries))


def _tile_for(variant: AttentionVariant) -> int:
    """A tile reads its window and itself, so a large one would compute much that a small window hides."""
    narrow = variant.window is not None and variant.window < 4 * _TILE
    return _SMALL_TILE if narrow or variant.changes_scores else _TILE
