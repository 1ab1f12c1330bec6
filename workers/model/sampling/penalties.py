"""Presence, frequency and repetition penalties: what each row has seen, and the pass that lowers it.

A row that asks for none costs nothing. For the others counts as wide as the vocabulary are kept up from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.penalize import penalize_counts, penalize_repetition
from workers.model.sampling.places import Numbers, Places, at_places, put_back, take
from workers.model.sampling.row_matrix import RowMatrix
from workers.step_plan import RowStart


def known_tokens(tokens: bytes, vocab_size: int) -> Numbers:
    """[n] int64. Ids beyond the vocabulary are dropped."""
    ids = np.frombuffer(tokens, "<i4").astype(np.int64)
    return ids[(ids >= 0) & (ids < vocab_size)]


@dataclass(frozen=True, slots=True)
class RepetitionPass:
    places: Places  # of the rows with a repetition penalty
    scales: RowMatrix  # [lines, vocabulary] fp32: a row's penalty where the token occurred, else 1
    lines: Tensor  # [rows] int64
    penalties: Tensor  # [rows] fp32

    def apply(self, logits: Tensor, positions: Tensor) -> None:
        taken = take(logits, self.places)
        penalize_repetition(taken, self.scales.lines.index_select(0, self.lines))
        put_back(logits, self.places, taken)

    def remember(self, drawn: Tensor) -> None:
        size = self.scales.lines.shape[1]
        self.scales.lines.view(-1).index_copy_(
            0, self.lines * size + take(drawn, self.places), self.penalties
        )


@dataclass(frozen=True, slots=True)
class CountPass:
    places: Places  # of the rows with a presence or a frequency penalty
    counts: RowMatrix  # [lines, vocabulary] fp32: how often each token was generated
    lines: Tensor  # [rows] int64
    frequency: Tensor  # [rows, 1] fp32
    presence: Tensor  # [rows, 1] fp32
    ones: Tensor  # [rows] fp32

    def apply(self, logits: Tensor, positions: Tensor) -> None:
        taken = take(logits, self.places)
        counts = self.counts.lines.index_select(0, self.lines)
        penalize_counts(taken, counts, self.frequency, self.presence)
        put_back(logits, self.places, taken)

    def remember(self, drawn: Tensor) -> None:
        size = self.counts.lines.shape[1]
        self.counts.lines.view(-1).index_add_(0, self.lines * size + take(drawn, self.places), self.ones)


class Penalties:
    """What rows have seen, between their start and their end."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._scales = RowMatrix(vocab_size, torch.float32)
        self._counts = RowMatrix(vocab_size, torch.float32)
        self._repetition: dict[int, float] = {}
        self._frequency_presence: dict[int, tuple[float, float]] = {}

    def start(self, start: RowStart) -> None:
        sampling, row = start.sampling, start.row
        if sampling.repetition_penalty != 1.0:
            self._repetition[row] = sampling.repetition_penalty
            seen = self._ids(start.prompt + start.generated)
            self._scales.take(row).fill_(1.0).index_fill_(0, seen, sampling.repetition_penalty)
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._frequency_presence[row] = sampling.frequency_penalty, sampling.presence_penalty
            generated = self._ids(start.generated)
            self._counts.take(row).fill_(0.0).index_add_(0, generated, torch.ones(len(generated)))

    def end(self, row: int) -> None:
        if self._repetition.pop(row, None) is not None:
            self._scales.give_back(row)
        if self._frequency_presence.pop(row, None) is not None:
            self._counts.give_back(row)

    def batch(self, rows: Sequence[int]) -> list[RepetitionPass | CountPass]:
        return [*self._repetition_pass(rows), *self._count_pass(rows)]

    def _repetition_pass(self, rows: Sequence[int]) -> list[RepetitionPass]:
        places = [place for place, row in enumerate(rows) if row in self._repetition]
        if not places:
            return []
        asking = [rows[place] for place in places]
        penalties = torch.tensor([self._repetition[row] for row in asking])
        where = at_places(np.array(places))
        return [RepetitionPass(where, self._scales, self._scales.lines_of(asking), penalties)]

    def _count_pass(self, rows: Sequence[int]) -> list[CountPass]:
        places = [place for place, row in enumerate(rows) if row in self._frequency_presence]
        if not places:
            return []
        asking = [rows[place] for place in places]
        penalties = torch.tensor([self._frequency_presence[row] for row in asking])
        frequency, presence = torch.split(penalties, 1, 1)
        where, lines = at_places(np.array(places)), self._counts.lines_of(asking)
        return [CountPass(where, self._counts, lines, frequency, presence, torch.ones_like(penalties[:, 0]))]

    def _ids(self, tokens: bytes) -> Tensor:
        return torch.from_numpy(known_tokens(tokens, self._vocab_size))
