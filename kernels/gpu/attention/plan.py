"""What a step's rows come to as launches of the attention kernel: grids, and a column of numbers per tile of queries.

Pure numbers in numpy, so that a step's tiles travel to the device with everything else that it uploads. Called by
runners; knows nothing of a model's variants: one plan serves every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.attention_variant import QueryRow

Numbers = NDArray[np.int64]  # one axis
Tiles = NDArray[np.int32]  # [TILE_NUMBERS, capacity]

# Of a tile: the row of its block table (negative: there is no such tile), its first token in the batch, its queries,
# the first slot of its partial results, and the position of its first query.
TILE_NUMBERS = 5
_ROW, _TOKEN, _COUNT, _SLOT, _START = range(TILE_NUMBERS)
NO_TILE = -1


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One way in which the kernel is compiled."""

    block_m: int  # query heads x positions of a tile
    block_n: int  # keys of a tile
    num_warps: int
    num_stages: int
    split_tokens: int

    def __post_init__(self) -> None:
        assert self.split_tokens % self.block_n == 0, (
            f"tiles of {self.block_n} keys do not make up a split of {self.split_tokens}"
        )

    def queries_of_tile(self, group: int) -> int:
        """`group`: query heads that share a KV head."""
        assert group <= self.block_m, f"{group} heads share a KV head: a tile has {self.block_m} rows"
        return self.block_m // group


@dataclass(frozen=True, slots=True)
class AttentionLaunch:
    """The grid of one launch. A captured one holds for every step that needs no more of anything."""

    shape: AttentionShape
    num_tiles: int
    max_queries: int  # of a tile
    num_splits: int  # of the longest row, computed side by side; 1: a program computes all of a tile's keys
    walked: bool  # a program combines its splits as if they had been computed side by side, to the bit


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    launch: AttentionLaunch
    tiles: Tiles  # [TILE_NUMBERS, num_tiles]

    def write(self, tiles: Tiles) -> None:
        """To memory that a captured launch of at least as many tiles reads; those beyond are marked empty."""
        num_tiles = self.tiles.shape[1]
        assert num_tiles <= tiles.shape[1], f"{num_tiles} tiles do not fit {tiles.shape[1]} columns"
        tiles[:, :num_tiles] = self.tiles
        tiles[_ROW, num_tiles:] = NO_TILE


@dataclass(frozen=True, slots=True)
class QueryColumns:
    """The rows of a step in the order of their tokens, those with one query first."""

    table_rows: Numbers
    starts: Numbers  # position of a row's first query
    counts: Numbers  # its queries

    @staticmethod
    def of(rows: Sequence[QueryRow]) -> QueryColumns:
        numbers = np.array([(row.row, row.start, row.num_queries) for row in rows], np.int64)
        return QueryColumns(*numbers.reshape(-1, 3).T)


@dataclass(frozen=True, slots=True)
class AttentionPlanner:
    """Where `decode` equals `prefill`, a row's bits do not depend on the step that computes it."""

    group: int  # query heads that share a KV head
    kv_heads: int
    decode: AttentionShape  # of rows with one query
    prefill: AttentionShape
    num_slots: int  # for partial results: one per query and split
    enough_programs: int  # keep a device busy: with as many, a chunk's splits are not computed side by side

    @property
    def one_shape(self) -> bool:
        return self.decode == self.prefill

    def decode_launch(self, num_rows: int, max_keys: int) -> AttentionLaunch:
        """To capture, for steps in which at most `num_rows` rows decode, behind at most `max_keys` keys each."""
        num_splits = -(-max_keys // self.decode.split_tokens)
        return AttentionLaunch(self.decode, num_rows, 1, num_splits, self.one_shape)

    def plan(self, rows: QueryColumns) -> tuple[PlannedLaunch, ...]:
        """At most two: of the rows that decode, whose tiles stand in their order, and of the others."""
        num_decodes = int(np.count_nonzero(rows.counts == 1))
        assert (rows.counts[:num_decodes] == 1).all(), "rows with one query come first"
        tokens = rows.counts.cumsum() - rows.counts
        launches = []
        if num_decodes:
            tiles = _tiles_of(rows, tokens, slice(0, num_decodes), 1)
            launches.append(self._launch(tiles, decode=True))
        if num_decodes < len(tokens):
            queries = self.prefill.queries_of_tile(self.group)
            tiles = _tiles_of(rows, tokens, slice(num_decodes, None), queries)
            # The longest work comes first, so that little is left to do when the last programs start.
            tiles = tiles[:, np.argsort(-(tiles[_START] + tiles[_COUNT]), kind="stable")]
            launches.append(self._launch(tiles, decode=False))
        return tuple(launches)

    def _launch(self, tiles: Numbers, decode: bool) -> PlannedLaunch:
        """Of `tiles` [TILE_NUMBERS, tiles], whose slots are still to be given."""
        shape = self.decode if decode else self.prefill
        num_tiles, counts = tiles.shape[1], tiles[_COUNT]
        num_splits = -(-(tiles[_START] + counts) // shape.split_tokens)
        num_slots = np.where(num_splits > 1, num_splits * counts, 0)
        tiles[_SLOT] = num_slots.cumsum() - num_slots
        side_by_side = self._are_side_by_side(decode, num_tiles, int(num_slots.sum()))
        in_grid = int(num_splits.max()) if side_by_side else 1
        launch = AttentionLaunch(shape, num_tiles, int(counts.max()), in_grid, self.one_shape)
        return PlannedLaunch(launch, np.ascontiguousarray(tiles, np.int32))

    def _are_side_by_side(self, decode: bool, num_tiles: int, num_slots: int) -> bool:
        if num_slots > self.num_slots:
            return False
        return decode or num_tiles * self.kv_heads < self.enough_programs


def _tiles_of(rows: QueryColumns, tokens: Numbers, part: slice, queries: int) -> Numbers:
    """[TILE_NUMBERS, tiles] of at most `queries` queries each, the slots left at 0."""
    counts = rows.counts[part]
    num_tiles = -(-counts // queries)
    ends = num_tiles.cumsum()
    owners = np.repeat(np.arange(len(counts)), num_tiles)
    offsets = (np.arange(ends[-1]) - (ends - num_tiles)[owners]) * queries
    tiles = np.zeros((TILE_NUMBERS, len(owners)), np.int64)
    tiles[_ROW] = rows.table_rows[part][owners]
    tiles[_TOKEN] = tokens[part][owners] + offsets
    tiles[_COUNT] = np.minimum(counts[owners] - offsets, queries)
    tiles[_START] = rows.starts[part][owners] + offsets
    return tiles
