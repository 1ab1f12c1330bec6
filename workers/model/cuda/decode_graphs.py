"""Graphs of the decoder's pass over rows that decode: one per number of rows and length of the longest row.

A step of such rows is one replay, and another one for the head. Padding has slot -1 and no attention tile: it reads row
0's newest token, computes, and writes nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from kernels.gpu.attention.operator import DeviceLaunch, TritonAttentionPlan
from kernels.gpu.attention.plan import NO_TILE, TILE_NUMBERS, PlannedLaunch, QueryColumns
from workers.model.cuda.device import Device, Replay
from workers.model.cuda.loading import LoadedModel
from workers.model.cuda.step_upload import Section, StepUpload
from workers.model.cuda.token_head import TokenHead
from workers.model.layers.decoder import ForwardBatch
from workers.model.step_batch import Numbers

_TILES_APART = 16
DECODE_ROW_BYTES = 3 * 8 + TILE_NUMBERS * 4  # of `DecodeSections`


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    feeds: Tensor  # [size] int64, rows whose newest tokens are fed
    positions: Tensor  # [size] int64
    slots: Tensor  # [size] int64, -1: padding
    tiles: Tensor  # [TILE_NUMBERS, at least size] int32


@dataclass(frozen=True, slots=True)
class DecodeSections:
    """Put behind the head's of the same size."""

    feeds: Section
    positions: Section
    slots: Section
    tiles: Section

    def on_device(self, upload: StepUpload) -> DecodeInputs:
        at = upload.on_device
        return DecodeInputs(at(self.feeds), at(self.positions), at(self.slots), at(self.tiles))


def put_tiles(upload: StepUpload, num_tiles: int, planned: Sequence[PlannedLaunch]) -> Section:
    """Of one launch, or of none where all is padding: [TILE_NUMBERS, num_tiles or a few more] int32. Columns that are a
    multiple of 16 apart make one kernel of what triton would else compile three times."""
    section, tiles = upload.room((TILE_NUMBERS, -(-num_tiles // _TILES_APART) * _TILES_APART), np.int32)
    tiles[...] = NO_TILE
    for each in planned:
        each.write(tiles)
    return section


class DecodeGraphs:
    """Empty until `capture`."""

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        head: TokenHead,
        block_tables: Tensor,  # [rows, blocks] int32, on the device
    ) -> None:
        self._device = device
        self._decoder = model.decoder
        self._planner = model.kernels.planner
        self._num_attentions = len(model.kernels.decoder.attentions)
        self._head = head
        self._block_tables = block_tables
        # Numbers wherever padding reads it, not whatever memory held before.
        self._attended = head.hidden.new_zeros(len(head.hidden), model.attended_size)
        self._sizes: tuple[int, ...] = ()
        self._keys: tuple[int, ...] = ()
        self._replays: dict[tuple[int, int], Replay] = {}

    def capture(
        self, sizes: Sequence[int], keys: Sequence[int], pool: Sequence[Tensor], upload: StepUpload
    ) -> None:
        """Ascending sizes and keys; captured largest first, because later ones fit the memory of the first."""
        for size in reversed(sizes):
            for most_keys in reversed(keys):
                run = partial(self._forward, most_keys, self._empty_step(size, upload), pool)
                self._replays[size, most_keys] = self._device.capture(run)
        self._sizes, self._keys = tuple(sizes), tuple(keys)

    def run_once(self, size: int, most_keys: int, pool: Sequence[Tensor], upload: StepUpload) -> None:
        """What a graph of this size would launch, with padding only: for its memory to be measured."""
        self._forward(most_keys, self._empty_step(size, upload), pool)

    def find(self, starts: Numbers) -> tuple[int, int] | None:
        """The graph for rows at these positions. None: there are too many, or their splits are."""
        size = next((size for size in self._sizes if size >= len(starts)), None)
        num_splits = starts // self._planner.decode.split_tokens + 1
        if size is None or num_splits[num_splits > 1].sum() > self._planner.num_slots:
            return None
        return size, next(keys for keys in self._keys if keys > starts.max())

    def put(
        self, upload: StepUpload, size: int, rows: Numbers, starts: Numbers, slots: Numbers
    ) -> DecodeSections:
        def put(values: Numbers, padding: int) -> Section:
            section, array = upload.room((size,), np.int64)
            array[: len(values)] = values
            array[len(values) :] = padding
            return section

        feeds, positions, places = put(rows, 0), put(starts, 0), put(slots, -1)
        planned = self._planner.plan(QueryColumns(rows, starts, np.ones_like(rows)))
        return DecodeSections(feeds, positions, places, put_tiles(upload, size, planned))

    def replay(self, size: int, most_keys: int) -> None:
        self._replays[size, most_keys]()

    def _empty_step(self, size: int, upload: StepUpload) -> DecodeInputs:
        """Of padding alone, laid out as every step of this size."""
        empty = np.zeros(0, np.int64)
        upload.begin()
        self._head.put(upload, size, empty, empty)
        sections = self.put(upload, size, empty, empty, empty)
        upload.send()
        return sections.on_device(upload)

    def _forward(self, most_keys: int, inputs: DecodeInputs, pool: Sequence[Tensor]) -> None:
        size = len(inputs.feeds)
        launch = DeviceLaunch(self._planner.decode_launch(size, most_keys), inputs.tiles)
        plan = TritonAttentionPlan((launch,), self._block_tables, self._attended)
        token_ids = self._head.newest.index_select(0, inputs.feeds)
        batch = ForwardBatch(
            token_ids, inputs.positions, inputs.slots, (plan,) * self._num_attentions, wanted=None
        )
        hidden = self._decoder.forward(batch, pool)
        assert hidden is not None, "every row that decodes is wanted"
        self._head.hidden[:size].copy_(hidden)
