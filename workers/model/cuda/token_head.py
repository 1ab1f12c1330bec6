"""From the hidden states of rows that draw to their tokens, which stay on the device for the next step to feed.

Called by `cuda_runner.py` and captured as graphs of its own, one per number of rows and kind of draw: so one set of
graphs serves steps that decode and steps that also prefill. Rows that want more than a draw (penalties, logprobs, bad
words ...) have their logits changed and looked at by `workers/model/sampler.py`, launch by launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gpu.sample_weights import SamplingRows
from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams
from workers.model.cuda.device import Device, Event, Replay
from workers.model.cuda.loading import LoadedModel
from workers.model.cuda.step_upload import Section, StepUpload
from workers.model.sampler import Sampler
from workers.model.sampling_state import Wish
from workers.model.step_batch import Numbers
from workers.tensor_parallel import TensorParallelGroup

Column = NDArray[Any]  # of whatever type
NO_ROW = -1


class DrawKind(IntEnum):
    """What a row needs; a step needs the largest of its rows'."""

    LIKELIEST = 0
    RANDOM = 1  # temperature, top-k, top-p, min-p
    EDITED = 2  # its logits change before the draw, or somebody wants to see them


def kind_of(sampling: SamplingParams) -> DrawKind:
    edited = (
        sampling.logprobs is not None
        or sampling.allowed_token_ids
        or sampling.logit_bias
        or sampling.bad_word_ids
        or sampling.min_tokens > 0
        or sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty
        or sampling.presence_penalty
    )
    if edited:
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


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """Under way to the host."""

    arrived: Event
    token_ids: Tensor  # [rows] int64, on the host; to be read behind `arrived`
    logprobs: Mapping[int, TokenLogprob] = field(default_factory=dict)


class TokenHead:
    """Owns the newest token of every row, on the device."""

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        group: TensorParallelGroup,
        sampler: Sampler,
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
        self._drawn = torch.zeros(max_size, dtype=torch.int64, device=own)
        self._hosts = [device.host_memory(8 * max_size).view(torch.int64) for _ in range(2)]
        self._turn = 0
        self._kinds = np.zeros(max_rows, np.int64)
        self._sizes: tuple[int, ...] = ()
        self._replays: dict[tuple[int, DrawKind], Replay] = {}

    def start(self, row: int, sampling: SamplingParams) -> None:
        self._kinds[row] = kind_of(sampling)

    def padded(self, num_rows: int) -> int:
        """The size of the smallest graph that holds so many rows; without one, no padding."""
        return next((size for size in self._sizes if size >= num_rows), num_rows)

    def capture(self, sizes: Sequence[int], upload: StepUpload) -> None:
        """Graphs of `sizes`, ascending; captured largest first, because later ones fit the memory of the first."""
        empty = np.zeros(0, np.int64)
        for size in reversed(sizes):
            upload.begin()
            sections = self.put(upload, size, empty, empty)
            upload.send()
            inputs = sections.on_device(upload)
            for kind in (DrawKind.RANDOM, DrawKind.LIKELIEST):
                self._replays[size, kind] = self._device.capture(partial(self._launch, size, kind, inputs))
        self._sizes = tuple(sizes)

    def put(self, upload: StepUpload, size: int, rows: Numbers, positions: Numbers) -> DrawSections:
        """Each row's wishes, padded to `size` with rows that are nobody's. `positions`: of the tokens to draw."""
        columns, num_rows = self._sampler.columns, len(rows)

        def put(values: Column, padding: float) -> Section:
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

    def draw(
        self, sections: DrawSections, upload: StepUpload, rows: Numbers, positions: Numbers
    ) -> DrawnTokens:
        """Of the rows whose hidden states are in `hidden`. The host does not wait for it."""
        kind, (size,) = DrawKind(self._kinds[rows].max()), sections.rows.shape
        self._device.await_downloads()
        if kind is DrawKind.EDITED:
            logprobs = self._launch_edited(sections.on_device(upload), rows, positions)
            return self._download(len(rows), logprobs)
        replay = self._replays.get((size, kind))
        if replay is None:
            self._launch(size, kind, sections.on_device(upload))
        else:
            replay()
        return self._download(len(rows), {})

    def _launch(self, size: int, kind: DrawKind, inputs: DrawInputs) -> None:
        hidden, out = self.hidden[:size], self._drawn[:size]
        if kind is DrawKind.LIKELIEST:
            self._find_likeliest(hidden, out)
        else:
            logits = self._decoder.logits(hidden)
            if logits is not None:
                self._kernels.draw.draw(logits, inputs.sampling, out)
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

    def _launch_edited(
        self, inputs: DrawInputs, rows: Numbers, positions: Numbers
    ) -> Mapping[int, TokenLogprob]:
        """With the same draw as other steps have: what a row gets does not depend on what others wish."""
        num_rows = len(rows)
        out = self._drawn[:num_rows]
        logprobs: Mapping[int, TokenLogprob] = {}

        def draw(edited: Tensor) -> Tensor:
            self._kernels.draw.draw(edited, inputs.sampling, out)
            return out

        logits = self._decoder.logits(self.hidden[:num_rows])
        if logits is not None:
            host_rows, host_positions = torch.from_numpy(rows), torch.from_numpy(positions)
            drawn = self._sampler.sample(logits, host_rows, host_positions, draw)
            out.copy_(drawn.token_ids)
            logprobs = drawn.logprobs
        self._group.broadcast(out)
        self._kernels.keep_newest(out, inputs.rows[:num_rows], self.newest)
        return logprobs

    def _download(self, num_rows: int, logprobs: Mapping[int, TokenLogprob]) -> DrawnTokens:
        """Two pieces of host memory take turns: the engine has read the step before the last when it launches one."""
        self._turn = 1 - self._turn
        host = self._hosts[self._turn][:num_rows]
        return DrawnTokens(self._device.download(self._drawn[:num_rows], host), host, logprobs)
