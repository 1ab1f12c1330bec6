"""From the hidden states of rows that draw to their tokens, which stay on the device for the next step to feed.

Called by `step_executor.py` and captured as graphs of its own, one per number of rows and kind of draw: so one set of
graphs serves steps that decode and steps that also prefill. What a row gets does not depend on what others wish: each
kind does for a row of a lesser one what that one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.sampling.weights import SamplingRows
from protocol.sampling import SamplingParams
from workers.model.cuda.device import Device, Replay
from workers.model.cuda.device_sampler import DeviceSampler
from workers.model.cuda.drawn_tokens import DrawnTokens, TokenDownload
from workers.model.cuda.loading import LoadedModel
from workers.model.cuda.started_rows import is_edited
from workers.model.cuda.step_upload import Section, StepUpload
from workers.model.sampling.places import Numbers
from workers.model.sampling.sampling_state import Wish
from workers.tensor_parallel import TensorParallelGroup

NO_ROW = -1


class DrawKind(IntEnum):
    """What a row needs; a step needs the largest of its rows'."""

    LIKELIEST = 0
    RANDOM = 1  # temperature, top-k, top-p, min-p
    EDITED = 2  # penalties, biases, words; logprobs


def _kind_of(sampling: SamplingParams) -> DrawKind:
    if is_edited(sampling):
        return DrawKind.EDITED
    return DrawKind.LIKELIEST if sampling.greedy else DrawKind.RANDOM


@dataclass(frozen=True, slots=True)
class DrawInputs:
    rows: Tensor  # [size] int32, NO_ROW: padding
    sampling: SamplingRows  # in the same order


@dataclass(frozen=True, slots=True)
class DrawSections:
    """Put first in every step that draws, so that they lie where graphs of the same size look for them."""

    rows: Section
    temperature: Section
    min_p: Section
    top_k: Section
    top_p: Section
    seed: Section
    position: Section

    def on_device(self, upload: StepUpload) -> DrawInputs:
        at = upload.on_device
        sampling = SamplingRows(
            at(self.temperature),
            at(self.min_p),
            at(self.top_k),
            at(self.top_p),
            at(self.seed),
            at(self.position),
        )
        return DrawInputs(at(self.rows), sampling)


ROW_BYTES = 40  # of `DrawSections`
_NOBODY = np.zeros(0, np.int64)


class TokenHead:
    """Owns the newest token of every row, on the device."""

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        group: TensorParallelGroup,
        sampler: DeviceSampler,
        max_rows: int,
        max_size: int,  # rows, padding included
    ) -> None:
        self._device = device
        self._decoder = model.decoder
        self._kernels = model.kernels
        self._group = group
        self._sampler = sampler
        own, hidden_size = device.torch_device, model.described.spec.hidden_size
        self.newest = torch.zeros(max_rows, dtype=torch.int64, device=own)
        # Of a step's rows that draw, [size, hidden], to be written before `draw`.
        self.hidden = torch.zeros(max_size, hidden_size, dtype=model.described.dtype, device=own)
        self._download = TokenDownload(device, sampler.columns, max_size)
        self._kinds = np.zeros(max_rows, np.int64)
        self._sizes: tuple[int, ...] = ()
        self._replays: dict[tuple[int, DrawKind], Replay] = {}

    def start(self, row: int, sampling: SamplingParams) -> None:
        self._kinds[row] = _kind_of(sampling)

    def padded(self, num_rows: int) -> int:
        """The size of the smallest graph that holds so many rows; without one, no padding."""
        return next((size for size in self._sizes if size >= num_rows), num_rows)

    def capture(self, sizes: Sequence[int], upload: StepUpload) -> None:
        """Graphs of `sizes`, ascending; captured largest first, because later ones fit the memory of the first."""
        for size in reversed(sizes):
            inputs = self._empty_step(size, upload)
            for kind in reversed(DrawKind):
                self._replays[size, kind] = self._device.capture(partial(self._launch, size, kind, inputs))
        self._sizes = tuple(sizes)

    def run_once(self, size: int, kind: DrawKind, upload: StepUpload) -> None:
        """What a graph of this size would launch, with padding only: for its memory to be measured."""
        self._launch(size, kind, self._empty_step(size, upload))

    def put(self, upload: StepUpload, size: int, rows: Numbers, positions: Numbers) -> DrawSections:
        """Each row's wishes, padded to `size` with rows that are nobody's. `positions`: of the tokens to draw."""
        columns, num_rows = self._sampler.columns, len(rows)

        def put(values: Numbers, padding: float) -> Section:
            section, array = upload.room((size,), values.dtype)
            array[:num_rows] = values
            array[num_rows:] = padding
            return section

        random = (columns.wishes[rows] & Wish.RANDOM) != 0
        return DrawSections(
            rows=put(rows.astype(np.int32), NO_ROW),
            temperature=put(np.where(random, columns.temperature[rows], np.float32(0.0)), 0.0),
            min_p=put(columns.min_p[rows], 0.0),
            top_k=put(columns.top_k[rows].astype(np.int32), 0),
            top_p=put(columns.top_p[rows], 1.0),
            seed=put(columns.seed[rows], 0),
            position=put(positions, 0),
        )

    def draw(self, sections: DrawSections, upload: StepUpload, rows: Numbers) -> DrawnTokens:
        """Of the rows whose hidden states are in `hidden`. The host does not wait for it."""
        kind, (size,) = DrawKind(self._kinds[rows].max()), sections.rows.shape
        self._device.await_downloads()
        replay = self._replays.get((size, kind))
        if replay is None:
            self._launch(size, kind, sections.on_device(upload))
        else:
            replay()
        return self._download.start(rows, are_scored=kind is DrawKind.EDITED)

    def _empty_step(self, size: int, upload: StepUpload) -> DrawInputs:
        """Of padding alone, laid out as every step of this size."""
        upload.begin()
        sections = self.put(upload, size, _NOBODY, _NOBODY)
        upload.send()
        return sections.on_device(upload)

    def _launch(self, size: int, kind: DrawKind, inputs: DrawInputs) -> None:
        hidden, out = self.hidden[:size], self._download.outputs.tokens[:size]
        if kind is DrawKind.LIKELIEST:
            self._find_likeliest(hidden, out)
        else:
            logits = self._decoder.logits(hidden)
            if logits is not None:
                self._draw(logits, kind, inputs, out)
            self._group.broadcast(out)
        self._kernels.keep_newest(out, inputs.rows, self.newest)

    def _find_likeliest(self, hidden: Tensor, out: Tensor) -> None:
        """Ranks exchange a logit and its token a row, packed into one number, instead of their logits."""
        part, first_id = self._decoder.logits_part(hidden)
        if self._group.size == 1:
            self._kernels.draw.most_likely(part, out)
            return
        pairs = torch.empty_like(out)
        self._kernels.draw.best_pairs(part, first_id, pairs)
        self._kernels.draw.best_of_ranks(self._group.gather_everywhere(pairs), out)

    def _draw(self, logits: Tensor, kind: DrawKind, inputs: DrawInputs, out: Tensor) -> None:
        if kind is DrawKind.RANDOM:
            self._kernels.draw.draw(logits, inputs.sampling, out)
            return
        scores = self._download.outputs.scores[: len(out)]
        self._kernels.draw.draw_edited(logits, inputs.sampling, inputs.rows, self._sampler.edits, out, scores)
