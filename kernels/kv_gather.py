"""Keys and values of whole blocks, read from the pool as one contiguous matrix per head. Part of `paged_attention.py`.

The pool's heads come before its blocks for this purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Memory that is written and read within one call. It grows and stays: fresh pages cost more than the copy."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def take(self, shape: Sequence[int]) -> Tensor:
        num_elements = math.prod(shape)
        if self._memory.numel() < num_elements:
            self._memory = self._memory.new_empty(1 << (num_elements - 1).bit_length())
        return self._memory[:num_elements].view(*shape)


def gather_blocks(
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
    block_ids: Tensor,  # [blocks] int64
    scratch: Scratch,
) -> Tensor:  # [2, kv_heads, blocks, block_size, head_dim], in the scratch
    """Whole blocks: copying token by token is several times slower."""
    _, heads, num_blocks, block_size, head_dim = kv.shape
    flat = kv.view(2 * heads, num_blocks, block_size * head_dim)
    out = scratch.take((2 * heads, len(block_ids), block_size * head_dim))
    torch.index_select(flat, 1, block_ids, out=out)
    return out.view(2, heads, -1, block_size, head_dim)


def first_of_consecutive(block_ids: Tensor) -> int | None:
    """The first block, where they lie side by side in the pool: no gather is needed then."""
    first, last = int(block_ids[0]), int(block_ids[-1])
    if last - first != len(block_ids) - 1:  # the usual answer, without looking at all of them
        return None
    return first if bool((block_ids.diff() == 1).all()) else None


def blocks_of_rows(
    block_tables: Tensor,  # [rows, blocks] int64
    rows: Sequence[int],
    firsts: Sequence[int],  # of each row, the first block wanted
    num_blocks: int,  # of each row; behind a row's last block the ids may be any, of blocks that the caller hides
) -> Tensor:  # [rows · num_blocks] int64
    if len(rows) == 1:
        return block_tables[rows[0], firsts[0] : firsts[0] + num_blocks]
    if firsts[0] == firsts[-1] and min(firsts) == max(firsts):
        wanted = block_tables[:, firsts[0] : firsts[0] + num_blocks]
        return wanted.index_select(0, torch.tensor(rows)).flatten()
    columns = torch.tensor(firsts)[:, None] + torch.arange(num_blocks)
    return block_tables[torch.tensor(rows)[:, None], columns.clamp_(max=block_tables.shape[1] - 1)].flatten()
