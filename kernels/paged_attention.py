"""Attention of each row's newest tokens over all its keys and values, read through its block table.

    out[t] = softmax(q[t] · K[0 … position of t]ᵀ / sqrt(head_dim)) V        per head; heads share K and V in groups

`attend_naively` is the meaning. `TorchPagedAttention` computes it on a CPU: what depends on the step alone (groups,
masks, block ids) is planned once, then `run` is called for every layer. Rows that decode come first, shortest first.
The pool's heads come before its blocks, so that gathered blocks are one contiguous matrix per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_PADDING = 1.5  # a group's padded blocks to its real ones: beyond, the next row opens a new group
_MAX_GROUP_BYTES = 2 << 20  # of KV gathered at once: it should still be in the cache when it is read
_TILE = 256  # queries of a chunk behind a cached prefix that share one slice of the mask


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One row's share of the step: queries at positions `start` to `start + num_queries`."""

    row: int  # of the block tables
    start: int
    num_queries: int

    @property
    def num_keys(self) -> int:
        return self.start + self.num_queries


@dataclass(frozen=True, slots=True)
class _Group:
    """Queries `begin` to `end` of the step that are computed by one call: rows that decode, or one chunk."""

    begin: int
    end: int
    start: int | None  # position of a chunk's first query; None: every row has one query, behind all its keys
    num_rows: int
    num_keys: int  # of the longest row
    first_block: int | None  # its blocks lie side by side from here on: no gather
    block_ids: Tensor  # [num_rows · blocks of the longest row] int64
    mask: Tensor | None  # [1, num_rows, 1, num_keys]; fp32; None where all are equally long


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    groups: tuple[_Group, ...]


class TorchPagedAttention:
    """Owns scratch memory for gathered blocks and the causal mask. One per runner; not for two threads."""

    def __init__(self, dtype: torch.dtype, block_size: int, token_elements: int) -> None:
        """`token_elements`: of one token's keys and values in one layer of this rank."""
        self._dtype = dtype
        self._block_size = block_size
        self._max_group_blocks = _MAX_GROUP_BYTES // (block_size * token_elements * dtype.itemsize)
        self._gathered = _Scratch(dtype)
        self._widened = _Scratch(torch.float32)
        self._mask = torch.empty(_TILE, 0, dtype=dtype)
        # Without AMX, torch's fused attention over bf16 is slow for a single query row per head: 680 µs where the same
        # in fp32 takes 175 with the conversion (12 heads of 64, 512 keys). Plain products would be faster still, but
        # oneDNN compiles them anew for every length, at a millisecond each.
        self._widens = dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported()

    def plan(self, rows: Sequence[QueryRow], block_tables: Tensor) -> AttentionPlan:  # [rows, blocks] int64
        groups: list[_Group] = []
        begin = index = 0
        while index < len(rows):
            count = 1 if rows[index].num_queries > 1 else self._num_grouped(rows, index)
            group = self._group(rows[index : index + count], begin, block_tables)
            groups.append(group)
            begin, index = group.end, index + count
        return AttentionPlan(tuple(groups))

    def run(
        self,
        q: Tensor,  # [tokens, q_heads, head_dim]
        kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
        plan: AttentionPlan,
    ) -> Tensor:  # [tokens, q_heads · head_dim]
        parts = [self._attend(q[group.begin : group.end], kv, group) for group in plan.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _num_grouped(self, rows: Sequence[QueryRow], index: int) -> int:
        """How many rows from `index` on are read together: they are sorted, so the last is the longest."""
        real, count = 0, 0
        for row in rows[index:]:
            blocks = self._num_blocks(row)
            real += blocks
            padded = blocks * (count + 1)
            if count and (row.num_queries > 1 or padded > min(real * _MAX_PADDING, self._max_group_blocks)):
                break
            count += 1
        return count

    def _num_blocks(self, row: QueryRow) -> int:
        return -(-row.num_keys // self._block_size)

    def _group(self, rows: Sequence[QueryRow], begin: int, block_tables: Tensor) -> _Group:
        longest = rows[-1]
        num_blocks = self._num_blocks(longest)
        if len(rows) == 1:
            block_ids = block_tables[longest.row, :num_blocks]
        else:
            block_ids = block_tables[[row.row for row in rows], :num_blocks].flatten()
        return _Group(
            begin=begin,
            end=begin + sum(row.num_queries for row in rows),
            start=longest.start if longest.num_queries > 1 else None,
            num_rows=len(rows),
            num_keys=longest.num_keys,
            first_block=_first_of_consecutive(block_ids) if len(rows) == 1 else None,
            block_ids=block_ids,
            mask=self._length_mask([row.num_keys for row in rows]),
        )

    def _length_mask(self, lengths: list[int]) -> Tensor | None:
        if lengths[0] == lengths[-1]:  # sorted: all are equal
            return None
        beyond = torch.arange(lengths[-1]) >= torch.tensor(lengths)[:, None]
        mask = torch.zeros(beyond.shape).masked_fill_(beyond, -torch.inf)
        return mask[None, :, None]

    def _attend(self, q: Tensor, kv: Tensor, group: _Group) -> Tensor:
        rows = self._read(kv, group)
        if group.start is not None:
            k, v = rows.transpose(1, 2).unbind()
            return self._attend_chunk(q, k, v, group.start)
        # The queries that share a KV head stand as its query rows: one product per head and row.
        packed = q.view(group.num_rows, kv.shape[1], -1, q.shape[2]).transpose(0, 1)
        if self._widens and packed.shape[2] == 1:
            packed, rows = packed.float(), self._widened.take(rows.shape).copy_(rows)
        k, v = rows.unbind()  # [kv_heads, num_rows, num_keys, head_dim]
        out = F.scaled_dot_product_attention(packed, k, v, group.mask)
        return out.transpose(0, 1).reshape(q.shape[0], -1).to(self._dtype)

    def _read(self, kv: Tensor, group: _Group) -> Tensor:
        """Keys and values as [2, kv_heads, num_rows, num_keys, head_dim]: a view of the pool, or of the scratch."""
        if group.first_block is not None:
            blocks = kv[:, :, group.first_block : group.first_block + len(group.block_ids)]
        else:
            blocks = self._gather(kv, group.block_ids)
        rows = blocks.view(2, kv.shape[1], group.num_rows, -1, kv.shape[4])
        return rows[:, :, :, : group.num_keys]

    def _gather(self, kv: Tensor, block_ids: Tensor) -> Tensor:
        """Whole blocks: copying token by token is several times slower."""
        _, heads, num_blocks, block_size, head_dim = kv.shape
        flat = kv.view(2 * heads, num_blocks, block_size * head_dim)
        out = self._gathered.take((2 * heads, len(block_ids), block_size * head_dim))
        torch.index_select(flat, 1, block_ids, out=out)
        return out.view(2, heads, -1, block_size, head_dim)

    def _attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        queries = q.transpose(0, 1)[None]  # [1, q_heads, tokens, head_dim]
        if start == 0:
            out = F.scaled_dot_product_attention(queries, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2).reshape(q.shape[0], -1)
        tiles = [
            F.scaled_dot_product_attention(
                tile,
                k[:, :, : start + offset + tile.shape[2]],
                v[:, :, : start + offset + tile.shape[2]],
                attn_mask=self._causal_mask(start + offset, tile.shape[2]),
                enable_gqa=True,
            )
            for offset, tile in zip(range(0, q.shape[0], _TILE), torch.split(queries, _TILE, 2), strict=True)
        ]
        out = tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)
        return out.transpose(1, 2).reshape(q.shape[0], -1)

    def _causal_mask(self, start: int, num_queries: int) -> Tensor:
        """Query i sees keys 0 to start + i. One triangle serves every chunk: a larger start is a slice further left."""
        origin = self._mask.shape[1] - _TILE
        if origin < start:
            origin = 1 << start.bit_length()
            full = torch.full((_TILE, origin + _TILE), -torch.inf, dtype=self._dtype)
            self._mask = full.triu_(origin + 1)
        return self._mask[:num_queries, origin - start : origin + num_queries]


class _Scratch:
    """Memory that is written and read within one call. It grows and stays: fresh pages cost more than the copy."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def take(self, shape: Sequence[int]) -> Tensor:
        num_elements = math.prod(shape)
        if self._memory.numel() < num_elements:
            self._memory = self._memory.new_empty(1 << (num_elements - 1).bit_length())
        return self._memory[:num_elements].view(*shape)


def _first_of_consecutive(block_ids: Tensor) -> int | None:
    first, last = int(block_ids[0]), int(block_ids[-1])
    if last - first != len(block_ids) - 1:  # the usual answer, without looking at all of them
        return None
    return first if bool((block_ids.diff() == 1).all()) else None


def attend_naively(
    q: Tensor,  # [tokens, q_heads, head_dim]
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
    rows: Sequence[QueryRow],
    block_tables: Tensor,  # [rows, blocks] int64
) -> Tensor:  # [tokens, q_heads · head_dim] fp32
    """The meaning, token by token."""
    k_pool, v_pool = kv.float().flatten(2, 3).unbind()
    kv_heads, _, block_size = kv.shape[1:4]
    out: list[Tensor] = []
    for row in rows:
        for position in range(row.start, row.num_keys):
            seen = torch.arange(position + 1)
            slots = block_tables[row.row, seen // block_size] * block_size + seen % block_size
            query = q[len(out)].float().view(kv_heads, -1, q.shape[-1])  # [kv_heads, group, head_dim]
            scores = torch.einsum("hgd,htd->hgt", query, k_pool[:, slots]) * q.shape[-1] ** -0.5
            out.append(torch.einsum("hgt,htd->hgd", scores.softmax(-1), v_pool[:, slots]).flatten())
    return torch.stack(out)
