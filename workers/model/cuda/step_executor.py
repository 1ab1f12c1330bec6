"""Runs step plans on a device: packs a step's numbers, sends them by one copy, launches the work and does not wait.

Steps that only decode are replays of graphs where one fits, all others are launched kernel by kernel. Owned by
`cuda_runner.py`; knows nothing of how a model was loaded, nor of how large its pool is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.attention.operator import DeviceLaunch, TritonAttentionPlan
from kernels.gpu.attention.plan import TILE_NUMBERS, QueryColumns
from workers.model.cuda.decode_graphs import DECODE_ROW_BYTES, DecodeGraphs, put_tiles
from workers.model.cuda.device import Device, Event
from workers.model.cuda.device_sampler import DeviceSampler
from workers.model.cuda.drawn_tokens import DrawnTokens
from workers.model.cuda.graph_sizes import graph_sizes, padded_rows
from workers.model.cuda.loading import LoadedModel
from workers.model.cuda.prompt_scoring import SCORED_TOKEN_BYTES, PromptScoring, ScoredPrompts
from workers.model.cuda.resident_state import COPY_BYTES, DELTA_BYTES, ResidentState
from workers.model.cuda.step_upload import StepUpload
from workers.model.cuda.token_head import ROW_BYTES, DrawKind, TokenHead
from workers.model.layers.decoder import ForwardBatch
from workers.model.row_states import RowStates
from workers.model.step_batch import Numbers, RowLayout, column_of, lay_out, token_columns
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

_NOTHING = SampledTokens()
_ROOM_BYTES = 4096  # for the ends of a step's sections, which are rounded up
# Id, position, slot, place where it is wanted, a tile of its own, and what it is scored against.
_TOKEN_BYTES = 4 * 8 + TILE_NUMBERS * 4 + SCORED_TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """On its way through the device's queue."""

    done: Event
    drawn: DrawnTokens | None = None
    scored: ScoredPrompts | None = None

    def wait(self) -> SampledTokens:
        self.done.wait()
        prompt_logprobs = {} if self.scored is None else self.scored.read()
        if self.drawn is None:
            return SampledTokens(prompt_logprobs=prompt_logprobs)
        return SampledTokens(self.drawn.token_ids.tolist(), self.drawn.read_logprobs(), prompt_logprobs)


class StepExecutor:
    """For one thread at a time, within the device's `active`."""

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        group: TensorParallelGroup,
        rows: RowStates[DeviceSampler],
        block_size: int,
        max_tokens: int,
    ) -> None:
        num_rows, max_blocks = rows.tables.array.shape
        self.sizes = graph_sizes(num_rows)  # in rows, ascending
        max_size = padded_rows(num_rows)
        self._device = device
        self._decoder = model.decoder
        self._planner = model.kernels.planner
        self._num_attentions = len(model.kernels.decoder.attentions)
        self._group = group
        self._rows = rows
        self._block_size = block_size
        num_bytes = _upload_bytes(max_size, max_tokens, num_rows * max_blocks)
        self._upload = StepUpload(device, num_bytes)
        self._resident = ResidentState(rows.tables, model.kernels, device.torch_device)
        self._prompts = PromptScoring(device, model)
        self._head = TokenHead(device, model, group, rows.sampler, num_rows, max_size)
        self._graphs = DecodeGraphs(device, model, self._head, self._resident.block_tables)
        # In the place of a token id: the row whose newest token it is, which only the device knows.
        self._newest_of_rows = -1 - np.arange(num_rows, dtype=np.int64)

    def run_and_forget(self, plan: StepPlan, pool: Sequence[Tensor]) -> None:
        """A step whose rows nobody wants: for its memory to be measured."""
        self.run(plan, pool).wait()
        self._rows.apply(StepPlan(plan.step, ends=tuple(start.row for start in plan.starts)))

    def run_largest_graph(self, most_keys: int, pool: Sequence[Tensor]) -> None:
        """What the largest graph would launch, of padding alone: for its memory to be measured."""
        self._graphs.run_once(self.sizes[-1], most_keys, pool, self._upload)
        self._head.run_once(self.sizes[-1], DrawKind.EDITED, self._upload)

    def capture(self, keys: Sequence[int], pool: Sequence[Tensor]) -> None:
        """From here on steps that decode are replays. `keys`: of the longest row, ascending; `pool` must stay."""
        self._graphs.capture(self.sizes, keys, pool, self._upload)
        self._head.capture(self.sizes, self._upload)

    def run(self, plan: StepPlan, pool: Sequence[Tensor]) -> DeviceStep | SampledTokens:
        self._rows.apply(plan)
        for start in plan.starts:
            self._head.start(start.row, start.sampling)
        self._rows.sampler.send(self._upload)
        self._upload.begin()
        if plan.num_decodes and not plan.chunks:
            rows, starts = column_of(plan.decode_rows), column_of(plan.decode_starts)
            graph = self._graphs.find(starts)
            if graph is not None:
                return self._replay(plan, graph, rows, starts, pool)
        return self._launch(plan, lay_out(plan), pool)

    def _replay(
        self, plan: StepPlan, graph: tuple[int, int], rows: Numbers, starts: Numbers, pool: Sequence[Tensor]
    ) -> DeviceStep | SampledTokens:
        upload, (size, _) = self._upload, graph
        wishes = self._head.put(upload, size, rows, starts + 1)
        slots = self._rows.tables.slots(rows, starts, self._block_size)
        self._graphs.put(upload, size, rows, starts, slots)
        changes = self._resident.put(upload, plan)
        upload.send()
        self._resident.apply(upload, changes, pool)
        self._graphs.replay(*graph)
        return self._step(self._head.draw(wishes, upload, rows))

    def _launch(
        self, plan: StepPlan, layout: RowLayout, pool: Sequence[Tensor]
    ) -> DeviceStep | SampledTokens:
        upload, head, num_drawn = self._upload, self._head, plan.num_drawn
        rows, positions = layout.drawn_rows, layout.drawn_positions
        scored = self._rows.scores.chunks(plan, layout)
        wanted = np.concatenate([layout.last_places, *(chunk.places for chunk in scored)])
        wishes = head.put(upload, head.padded(num_drawn), rows, positions)
        asked = self._prompts.put(upload, scored)
        changes = self._resident.put(upload, plan)
        batch = self._send_batch(plan, layout, wanted)
        self._resident.apply(upload, changes, pool)
        hidden = self._decoder.forward(batch, pool)
        if hidden is None:
            return self._step(None)
        prompts = None if asked is None else self._prompts.score(hidden[num_drawn:], scored, asked, upload)
        if not num_drawn:
            return self._step(None, prompts)
        head.hidden[:num_drawn].copy_(hidden[:num_drawn])
        return self._step(head.draw(wishes, upload, rows), prompts)

    def _send_batch(self, plan: StepPlan, layout: RowLayout, wanted: Numbers) -> ForwardBatch:
        upload, order = self._upload, layout.order
        columns = token_columns(plan, layout, self._newest_of_rows, self._rows.tables, self._block_size)
        queries = QueryColumns(layout.rows[order], layout.starts[order], layout.counts[order])
        planned = self._planner.plan(queries)
        sections = [
            upload.put(each) for each in (columns.token_ids, columns.positions, columns.slots, wanted)
        ]
        tiles = [put_tiles(upload, each.launch.num_tiles, (each,)) for each in planned]
        upload.send()
        token_ids, positions, slots, places = map(upload.on_device, sections)
        launches = [
            DeviceLaunch(each.launch, upload.on_device(section))
            for each, section in zip(planned, tiles, strict=True)
        ]
        attention = TritonAttentionPlan(tuple(launches), self._resident.block_tables)
        newest = self._head.newest[(-1 - token_ids).clamp_(min=0)]
        token_ids = torch.where(token_ids < 0, newest, token_ids)
        return ForwardBatch(token_ids, positions, slots, (attention,) * self._num_attentions, places)

    def _step(
        self, drawn: DrawnTokens | None, scored: ScoredPrompts | None = None
    ) -> DeviceStep | SampledTokens:
        """Ranks but the first wait for nothing: the next plan's upload holds them back where they run ahead."""
        if self._group.rank > 0:
            return _NOTHING
        done = self._device.mark() if drawn is None else drawn.arrived
        return DeviceStep(done, drawn, scored)


def _upload_bytes(max_rows: int, max_tokens: int, max_deltas: int) -> int:
    """Of the largest step. A plan copies at most a block a row, when a prompt's sequences part."""
    row_bytes = ROW_BYTES + DECODE_ROW_BYTES + COPY_BYTES
    return _ROOM_BYTES + max_rows * row_bytes + max_tokens * _TOKEN_BYTES + max_deltas * DELTA_BYTES
