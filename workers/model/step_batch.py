"""From a `StepPlan` to the tensors of one forward pass. Owns the rows' block tables, which plans only add to.

Rows are laid out so that those with one query come first, shortest first: attention then reads neighbours together.
The drawn tokens keep the plan's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from kernels.paged_attention import QueryRow, TorchPagedAttention
from workers.model.decoder import ForwardBatch
from workers.step_plan import RowStep


class BlockTables:
    """One table per row: the blocks that hold its tokens, in order."""

    def __init__(self, num_rows: int, max_blocks: int) -> None:
        self.array = np.zeros((num_rows, max_blocks), dtype=np.int64)  # 0: the null block
        self.tensor = torch.from_numpy(self.array)  # the same memory
        self._lengths = [0] * num_rows

    def clear(self, row: int) -> None:
        self._lengths[row] = 0

    def append(self, row: int, blocks: Sequence[int]) -> None:
        begin = self._lengths[row]
        end = begin + len(blocks)
        assert end <= self.array.shape[1], f"row {row} was given {end} blocks, over the context's"
        self.array[row, begin:end] = blocks
        self._lengths[row] = end

    def length(self, row: int) -> int:
        return self._lengths[row]


def build_batch(
    rows: Sequence[RowStep], tables: BlockTables, attention: TorchPagedAttention, block_size: int
) -> ForwardBatch:
    """The tables already hold the step's new blocks."""
    order = sorted(range(len(rows)), key=lambda index: _layout_key(rows[index]))
    queries = [QueryRow(rows[index].row, rows[index].start, len(rows[index].token_ids)) for index in order]
    row_ids, positions = _positions(queries)
    blocks = tables.array[row_ids, positions // block_size]
    return ForwardBatch(
        token_ids=torch.tensor(list(chain.from_iterable(rows[index].token_ids for index in order))),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(blocks * block_size + positions % block_size),
        attention=attention.plan(queries, tables.tensor),
        sampled=torch.tensor(_last_tokens(rows, order), dtype=torch.int64),
    )


def _layout_key(row: RowStep) -> tuple[bool, int]:
    return len(row.token_ids) > 1, row.start


def _positions(queries: Sequence[QueryRow]) -> tuple[np.ndarray, np.ndarray]:
    """Of every token: its row and its position."""
    counts = np.array([query.num_queries for query in queries])
    starts = np.array([query.start for query in queries])
    row_ids = np.repeat([query.row for query in queries], counts)
    offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return row_ids, np.repeat(starts, counts) + offsets


def _last_tokens(rows: Sequence[RowStep], order: Sequence[int]) -> list[int]:
    """Where the last token of each row that draws lies in the batch; in the plan's order."""
    last: dict[int, int] = {}
    end = 0
    for index in order:
        end += len(rows[index].token_ids)
        last[index] = end - 1
    return [last[index] for index, row in enumerate(rows) if row.sample]
