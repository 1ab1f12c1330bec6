"""Paged attention whose bits depend on a query and its keys alone: not on the step, its chunks, or whence KV came.

Keys stand on a grid of tiles that begins at position 0, and `tile_attention.py` computes one tile after the other. So
it does not matter which queries are computed together: rows that decode share calls while they are of like length, and
a chunk is cut into tiles of queries. The interface is that of `paged_attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.kv_gather import Fp8Reader, PlainReader, WidenedReader
from kernels.tile_attention import KeyTiles, TileAttention

# Keys of a tile, whole blocks and whole vectors, so that no operator meets a rest that it would compute otherwise. 128
# are as fast for long contexts and chunks, but rows that decode at 270 tokens take a fifth longer (12 heads of 64).
_KEY_TILE = 64
_MAX_PADDING = 1.5  # a group's tiles to its real ones: beyond, the next row opens a new group
_MAX_GROUP_BYTES = 4 << 20  # of fp32 KV gathered at once for rows that decode
_MAX_QUERIES = 128  # of a tile of a chunk
_MIN_QUERIES = 8
_MAX_TILE_SCORES = 1 << 17  # per head: a tile's scores should still be in the cache when they become weights


@dataclass(frozen=True, slots=True)
class _QueryTile:
    """Queries `begin` to `end` of each row."""

    begin: int
    end: int
    positions: Tensor  # [rows, queries] fp32
    parts: tuple[KeyTiles, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """Queries `begin` to `end` of the step: rows that decode, or one chunk."""

    begin: int
    end: int
    num_rows: int
    num_tiles: int  # of keys, read of each row
    block_ids: Tensor  # [rows · blocks of these tiles] int64
    first_keys: Tensor  # [rows] fp32: positions of the first keys that are read
    query_tiles: tuple[_QueryTile, ...]


@dataclass(frozen=True, slots=True)
class DeterministicPlan:
    """Belongs to the attention that made it."""

    parts: tuple[_Part, ...]


class DeterministicAttention:
    """Owns scratch memory. One per variant and runner; not for two threads."""

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
        self._dtype = dtype
        self._block_size = block_size
        self._key_tile = math.lcm(block_size, _KEY_TILE)
        self._max_group_tiles = _MAX_GROUP_BYTES // (self._key_tile * token_elements * 4)
        self._blocks = _reader(dtype, fp8_kv)
        self._tiles = TileAttention(variant)

    def plan(
        self, rows: Sequence[QueryRow], block_tables: Tensor
    ) -> DeterministicPlan:  # [rows, blocks] int64
        parts: list[_Part] = []
        begin = index = 0
        while index < len(rows):
            count = 1 if rows[index].num_queries > 1 else self._num_grouped(rows, index)
            part = self._part(rows[index : index + count], begin, block_tables)
            parts.append(part)
            begin, index = part.end, index + count
        return DeterministicPlan(tuple(parts))

    def run(
        self,
        q: Tensor,  # [tokens, q_heads, head_dim]
        kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
        plan: DeterministicPlan,
        kv_scales: Tensor | None = None,  # [2, kv_heads] fp32, of an fp8 pool
    ) -> Tensor:  # [tokens, q_heads · head_dim]
        outputs = [self._attend(q[part.begin : part.end], kv, part, kv_scales) for part in plan.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _num_grouped(self, rows: Sequence[QueryRow], index: int) -> int:
        """How many rows from `index` on are read together: they are sorted, so neighbours are of like length."""
        real, widest, count = 0, 0, 0
        for row in rows[index:]:
            tiles = self._last_tile(row) - self._first_tile(row.start)
            real, widest = real + tiles, max(widest, tiles)
            padded = widest * (count + 1)
            if count and (row.num_queries > 1 or padded > min(real * _MAX_PADDING, self._max_group_tiles)):
                break
            count += 1
        return count

    def _first_tile(self, position: int) -> int:
        return self._variant.first_key(position) // self._key_tile

    def _last_tile(self, row: QueryRow) -> int:
        """The one behind the row's last."""
        return -(-row.num_keys // self._key_tile)

    def _part(self, rows: Sequence[QueryRow], begin: int, block_tables: Tensor) -> _Part:
        firsts = [self._first_tile(row.start) for row in rows]
        num_tiles = max(self._last_tile(row) - first for row, first in zip(rows, firsts, strict=True))
        num_queries = rows[0].num_queries  # of every row: a chunk stands alone
        first_keys = torch.tensor([first * self._key_tile for first in firsts])
        starts = torch.tensor([row.start for row in rows])
        return _Part(
            begin=begin,
            end=begin + len(rows) * num_queries,
            num_rows=len(rows),
            num_tiles=num_tiles,
            block_ids=self._block_ids(rows, first_keys, num_tiles, block_tables),
            first_keys=first_keys.float(),
            query_tiles=tuple(self._query_tiles(starts, num_queries, first_keys, num_tiles)),
        )

    def _block_ids(
        self, rows: Sequence[QueryRow], first_keys: Tensor, num_tiles: int, block_tables: Tensor
    ) -> Tensor:
        """Behind a row's last block that block again: what it holds is finite, and hidden by the masks."""
        columns = torch.arange(num_tiles * self._key_tile // self._block_size)
        columns = first_keys[:, None] // self._block_size + columns
        last = torch.tensor([[(row.num_keys - 1) // self._block_size] for row in rows])
        ids = torch.tensor([[row.row] for row in rows])
        return block_tables[ids, torch.minimum(columns, last)].flatten()

    def _query_tiles(
        self, starts: Tensor, num_queries: int, first_keys: Tensor, num_tiles: int
    ) -> Iterator[_QueryTile]:
        if num_queries > 1:
            yield from self._chunk_tiles(int(starts), num_queries, first_keys, num_tiles)
            return
        positions = starts[:, None]
        every = KeyTiles(0, num_tiles, self._mask(positions, first_keys, 0, num_tiles))
        yield _QueryTile(0, 1, positions.float(), (every,))

    def _chunk_tiles(
        self, start: int, num_queries: int, first_keys: Tensor, num_tiles: int
    ) -> Iterator[_QueryTile]:
        size, origin = _num_queries(num_tiles * self._key_tile), int(first_keys) // self._key_tile
        for begin in range(0, num_queries, size):
            end = min(begin + size, num_queries)
            first = self._first_tile(start + begin) - origin
            last = (start + end - 1) // self._key_tile - origin
            positions = torch.arange(start + begin, start + end)[None]
            parts = [
                KeyTiles(tile, tile + 1, self._mask(positions, first_keys, tile, 1))
                for tile in range(first, last + 1)
            ]
            yield _QueryTile(begin, end, positions.float(), tuple(parts))

    def _mask(self, positions: Tensor, first_keys: Tensor, first: int, num_tiles: int) -> Tensor | None:
        keys = torch.arange(first * self._key_tile, (first + num_tiles) * self._key_tile)
        places = (first_keys[:, None] + keys).view(len(first_keys), num_tiles, 1, 1, self._key_tile)
        distances = places - positions[:, None, None, :, None]
        hidden = distances > 0
        if self._variant.window is not None:
            hidden |= distances <= -self._variant.window
        if not bool(hidden.any()):
            return None
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)

    def _attend(self, q: Tensor, kv: Tensor, part: _Part, kv_scales: Tensor | None) -> Tensor:
        kv_heads, head_dim = kv.shape[1], kv.shape[4]
        # Never a view of the pool: the start is aligned, wherever the blocks lie.
        keys_and_values = self._blocks.gather(kv, part.block_ids).view(
            2, kv_heads, part.num_rows, part.num_tiles, self._key_tile, head_dim
        )
        if kv_scales is not None:
            keys_and_values.mul_(kv_scales[:, :, None, None, None, None])
        group = q.shape[1] // kv_heads
        scaled = q.float().mul(self._variant.scale)
        queries = scaled.view(part.num_rows, -1, kv_heads, group, head_dim).permute(2, 0, 3, 1, 4)
        outputs = [
            self._tiles.attend(
                queries[:, :, :, tile.begin : tile.end],
                keys_and_values,
                tile.positions,
                part.first_keys,
                tile.parts,
            )
            for tile in part.query_tiles
        ]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 3)
        return out.permute(1, 3, 0, 2, 4).reshape(len(q), -1).to(self._dtype)


def _reader(dtype: torch.dtype, fp8_kv: bool) -> PlainReader | WidenedReader | Fp8Reader:
    """Into fp32."""
    if fp8_kv:
        return Fp8Reader(torch.float32)
    return PlainReader(dtype) if dtype == torch.float32 else WidenedReader(dtype)


def _num_queries(num_keys: int) -> int:
    """Of a tile: a power of two."""
    fitting = max(_MAX_TILE_SCORES // num_keys, 1)
    return min(max(1 << fitting.bit_length() - 1, _MIN_QUERIES), _MAX_QUERIES)
