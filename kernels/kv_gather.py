"""Keys and values of whole blocks, read from the pool as one contiguous matrix per head. Part of `paged_attention.py`
and of `deterministic_attention.py`.

The pool's heads come before its blocks for this purpose. Which reader an attention has is decided when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.quantize_fp8 import halves_of


class Scratch:
    """Memory that is written and read within one call. It grows and stays: fresh pages cost more than the copy."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def take(self, shape: Sequence[int]) -> Tensor:
        num_elements = math.prod(shape)
        if self._memory.numel() < num_elements:
            self._memory = self._memory.new_empty(1 << (num_elements - 1).bit_length())
        return self._memory[:num_elements].view(*shape)


class PlainReader:
    """Of a pool that holds numbers as they are computed with. What a reader returns stays until its next read."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._gathered = Scratch(dtype)

    def gather(
        self,
        kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
        block_ids: Tensor,  # [blocks] int64
    ) -> Tensor:  # [2, kv_heads, blocks, block_size, head_dim], from an aligned address on
        """Whole blocks: copying token by token is several times slower."""
        _, heads, num_blocks, block_size, head_dim = kv.shape
        flat = kv.view(2 * heads, num_blocks, block_size * head_dim)
        out = self._gathered.take((2 * heads, len(block_ids), block_size * head_dim))
        torch.index_select(flat, 1, block_ids, out=out)
        return out.view(2, heads, -1, block_size, head_dim)

    def neighbours(self, kv: Tensor, first: int, num_blocks: int) -> Tensor:
        """Blocks that lie side by side: a view of the pool."""
        return kv[:, :, first : first + num_blocks]


class WidenedReader:
    """The same, in fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._stored = PlainReader(dtype)
        self._widened = Scratch(torch.float32)

    def gather(self, kv: Tensor, block_ids: Tensor) -> Tensor:
        blocks = self._stored.gather(kv, block_ids)
        return self._widened.take(blocks.shape).copy_(blocks)


class Fp8Reader:
    """Of a pool of float8_e4m3fn, whose bits are those of an fp16 number 256 times smaller: sign | 0 | the other seven.

    Torch's own conversion takes 14 times as long, a number at a time. A NaN becomes 480.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._stored = PlainReader(torch.int8)
        self._bits = Scratch(torch.int16)
        self._widened = Scratch(torch.float32)
        self._narrowed = None if dtype == torch.float32 else Scratch(dtype)

    def gather(self, kv: Tensor, block_ids: Tensor) -> Tensor:
        return self._widen(self._stored.gather(kv.view(torch.int8), block_ids))

    def neighbours(self, kv: Tensor, first: int, num_blocks: int) -> Tensor:
        return self._widen(self._stored.neighbours(kv.view(torch.int8), first, num_blocks))

    def _widen(self, stored: Tensor) -> Tensor:
        bits = self._bits.take(stored.shape).copy_(stored)  # the sign fills the upper half
        numbers = self._widened.take(stored.shape).copy_(halves_of(bits)).mul_(256.0)
        return numbers if self._narrowed is None else self._narrowed.take(stored.shape).copy_(numbers)


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
