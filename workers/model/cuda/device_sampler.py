"""What rows wish of their tokens, between their start and their end: the sampler of a runner whose kernels draw.

How to draw lies on the host, in columns, and goes along with each step. What is done to logits before (penalties,
biases, words) and how much is told of them lies on the device, by row, and changes only when a row starts. Kept by
`row_states.py`; read by `token_head.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kernels.edited_rows import EditedRows
from workers.model.cuda.line_uploads import Lines, lines_of, send_lines
from workers.model.cuda.started_rows import LineEntries, StartedRow, is_edited
from workers.model.cuda.step_upload import StepUpload
from workers.model.sampling.sampling_state import SamplingColumns
from workers.step_plan import RowStart


class DeviceSampler:
    """For one thread at a time, within the device's `active`."""

    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        max_rows: int,
        device: torch.device,
        draws: bool,  # whether this rank does: else it keeps nothing on the device
    ) -> None:
        self.columns = SamplingColumns(max_rows)
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._words: dict[int, Tensor] = {}
        self.edits = EditedRows.empty(max_rows if draws else 0, vocab_size, self._words, device)
        self._wishing: set[int] = set()  # rows whose records on the device are not blank
        self._started: dict[int, StartedRow] = {}  # of which the device has not been told

    def start(self, start: RowStart) -> None:
        """What the row held before is forgotten."""
        self.columns.start(start, self._vocab_size)
        if is_edited(start.sampling):
            self._wishing.add(start.row)
            self._started[start.row] = StartedRow.of(start, self._vocab_size, self._eos_token_ids)
        elif start.row in self._wishing:
            self._wishing.remove(start.row)
            self._started[start.row] = StartedRow.blank()

    def end(self, row: int) -> None:
        """The device is told when the row is taken again."""
        self.columns.end(row)

    def send(self, upload: StepUpload) -> None:
        """To the device, before the first step of the rows that have started since. An upload of its own, if any."""
        if self._started:
            started, self._started = self._started, {}
            for row, each in started.items():
                self._clear(row, each)
            send_lines(upload, self._lines(started))

    def _clear(self, row: int, started: StartedRow) -> None:
        """What lies in a row's lines before its entries come."""
        for matrix, entries in ((self.edits.biases, started.biases), (self.edits.marks, started.marks)):
            if entries is not None:
                matrix[row].fill_(entries.filling)
        self._words.pop(row, None)  # a step under way that looks there runs before whoever gets the memory
        if started.words is not None:
            device = self.edits.records.device
            self._words[row] = torch.empty(len(started.words), dtype=torch.int32, device=device)

    def _lines(self, started: dict[int, StartedRow]) -> Iterator[Lines]:
        edits, rows = self.edits, np.array([*started])
        yield Lines(edits.records, rows, np.stack([each.record for each in started.values()]))
        yield from self._entries(edits.biases, {row: each.biases for row, each in started.items()})
        yield from self._entries(edits.marks, {row: each.marks for row, each in started.items()})
        words = {row: each.words for row, each in started.items() if each.words is not None}
        addresses = np.array([self._words[row].data_ptr() for row in words], np.int64)
        yield Lines(edits.addresses, np.array([*words], np.int64), addresses)
        for row, numbers in words.items():
            yield Lines(self._words[row], np.arange(len(numbers)), numbers)

    def _entries(self, matrix: Tensor, entries: dict[int, LineEntries | None]) -> list[Lines]:
        found = [(row, each) for row, each in entries.items() if each is not None]
        places = (row * self._vocab_size + each.tokens for row, each in found)
        return lines_of(matrix.view(-1), places, (each.values for _, each in found))
