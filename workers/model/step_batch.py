"""From a `StepPlan` to the tensors of one forward pass. Owns the rows' block tables, which plans only add to.

Rows are laid out so that those with one query come first, shortest first: attention then reads neighbours together.
What is drawn keeps the plan's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.attention_variant import PagedAttention, QueryRow
from workers.model.layers.decoder import ForwardBatch
from workers.step_plan import StepPlan

Numbers = NDArray[np.int64]  # one axis


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

    def slots(self, rows: Numbers, positions: Numbers, block_size: int) -> Numbers:
        """Where in the pool the tokens of these rows at these positions lie."""
        return self.array[rows, positions // block_size] * block_size + positions % block_size


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Every row of a step, in the plan's order: decodes, then chunks."""

    rows: Numbers
    starts: Numbers  # position of the row's first token
    counts: Numbers  # its tokens in this step
    begins: Numbers  # where its tokens begin in the batch
    order: Numbers  # rows as they lie in the batch
    drawing: Numbers  # the rows that draw, as indices of the columns above

    @property
    def drawn_rows(self) -> Numbers:
        return self.rows[self.drawing]

    @property
    def drawn_positions(self) -> Numbers:
        """Of the tokens to draw."""
        return (self.starts + self.counts)[self.drawing]

    @property
    def last_places(self) -> Numbers:
        """Where in the batch the tokens lie after which one is drawn."""
        return (self.begins + self.counts - 1)[self.drawing]


def lay_out(plan: StepPlan) -> RowLayout:
    num_decodes, chunks = plan.num_decodes, plan.chunks
    rows = np.concatenate([column_of(plan.decode_rows), np.array([each.row for each in chunks], np.int64)])
    starts = np.concatenate(
        [column_of(plan.decode_starts), np.array([each.start for each in chunks], np.int64)]
    )
    counts = np.ones(len(rows), np.int64)
    counts[num_decodes:] = [each.num_tokens for each in chunks]
    order = np.lexsort((starts, counts > 1))
    begins = np.empty_like(counts)
    begins[order] = counts[order].cumsum() - counts[order]
    sampling = [num_decodes + index for index, each in enumerate(chunks) if each.sample]
    drawing = np.concatenate([np.arange(num_decodes), np.array(sampling, np.int64)])
    return RowLayout(rows, starts, counts, begins, order, drawing)


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """Every token of a step, in the batch's order."""

    token_ids: Numbers
    positions: Numbers
    slots: Numbers


def build_batch(
    plan: StepPlan,
    layout: RowLayout,
    wanted: Numbers,  # places in the batch of the tokens after which something is drawn or scored
    last_tokens: Numbers,  # [rows]: the newest token of each
    tables: BlockTables,  # they hold the step's new blocks already
    attentions: Sequence[PagedAttention],
    block_size: int,
) -> ForwardBatch:
    order = layout.order
    columns = zip(
        layout.rows[order].tolist(), layout.starts[order].tolist(), layout.counts[order].tolist(), strict=True
    )
    queries = [QueryRow(*column) for column in columns]
    tokens = token_columns(plan, layout, last_tokens, tables, block_size)
    return ForwardBatch(
        token_ids=torch.from_numpy(tokens.token_ids),
        positions=torch.from_numpy(tokens.positions),
        slots=torch.from_numpy(tokens.slots),
        attention=tuple(each.plan(queries, tables.tensor) for each in attentions),
        wanted=torch.from_numpy(wanted),
    )


def token_columns(
    plan: StepPlan,
    layout: RowLayout,
    last_tokens: Numbers,  # [rows]: the newest token of each, or what stands for it
    tables: BlockTables,
    block_size: int,
) -> TokenColumns:
    order, counts = layout.order, layout.counts[layout.order]
    token_rows = np.repeat(layout.rows[order], counts)
    positions = np.repeat(layout.starts[order] - layout.begins[order], counts) + np.arange(counts.sum())
    slots = tables.slots(token_rows, positions, block_size)
    return TokenColumns(_token_ids(plan, layout, last_tokens), positions, slots)


def _token_ids(plan: StepPlan, layout: RowLayout, last_tokens: Numbers) -> Numbers:
    token_ids = np.empty(layout.counts.sum(), np.int64)
    num_decodes = plan.num_decodes
    token_ids[layout.begins[:num_decodes]] = last_tokens[layout.rows[:num_decodes]]
    for chunk, begin in zip(plan.chunks, layout.begins[num_decodes:].tolist(), strict=True):
        token_ids[begin : begin + chunk.num_tokens] = column_of(chunk.token_ids)
    return token_ids


def column_of(packed: bytes) -> Numbers:
    """A plan's packed int32."""
    return np.frombuffer(packed, "<i4").astype(np.int64)
