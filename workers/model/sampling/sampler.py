"""Draws the next token of every row of a step in one pass, greedy and random rows mixed.

    raw logprobs -> allowed ids -> min_tokens, bad words, logit bias -> penalties -> temperature
                 -> min-p -> top-k -> top-p -> draw

Called by the CPU's runner; a GPU's kernels mean the same (`cuda/device_sampler.py`). What a row draws depends on its
logits, its seed and the token's position: never on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.argmax import argmax
from protocol.messages import TokenLogprob
from workers.model.sampling.bad_words import BadWords
from workers.model.sampling.logit_edits import LogitEdits
from workers.model.sampling.penalties import Penalties
from workers.model.sampling.places import Numbers
from workers.model.sampling.sampling_batch import SamplingBatch
from workers.model.sampling.sampling_state import SamplingColumns
from workers.model.sampling.token_logprobs import score_tokens
from workers.step_plan import RowStart

_SCORED_BYTES = 8 << 20  # of logits whose log-probabilities exist at a time


@dataclass(frozen=True, slots=True)
class Drawn:
    token_ids: Tensor  # [samples] int64
    logprobs: Mapping[int, TokenLogprob] = field(default_factory=dict)  # by place, of rows that asked


class Sampler:
    """Keeps the sampling state of rows between `start` and `end`. For one thread at a time."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...], max_rows: int) -> None:
        self._vocab_size = vocab_size
        self._columns = SamplingColumns(max_rows)
        self._edits = LogitEdits(vocab_size, eos_token_ids)
        self._bad_words = BadWords(vocab_size)
        self._penalties = Penalties(vocab_size)
        self._batch: SamplingBatch | None = None  # of the rows that sampled last
        self._batch_rows = b""

    def start(self, start: RowStart) -> None:
        """What the row held before is forgotten."""
        self.end(start.row)
        self._columns.start(start, self._vocab_size)
        self._edits.start(start)
        self._bad_words.start(start)
        self._penalties.start(start)

    def end(self, row: int) -> None:
        self._batch = None
        self._columns.end(row)
        self._edits.end(row)
        self._bad_words.end(row)
        self._penalties.end(row)

    def sample(
        self,
        logits: Tensor,  # [samples, vocabulary], consumed
        rows: Numbers,  # [samples] int64
        positions: Tensor,  # [samples] int64, of the tokens to draw
    ) -> Drawn:
        batch = self._batch_of(rows)
        if batch.is_argmax:
            return Drawn(argmax(logits))
        logits = logits.float().contiguous()
        raw = None if batch.asked is None else batch.asked.keep(logits)
        for each in batch.passes:
            each.apply(logits, positions)
        drawn = batch.draw(logits, positions)
        for each in batch.passes:
            each.remember(drawn)
        if batch.asked is None or raw is None:
            return Drawn(drawn)
        return Drawn(drawn, batch.asked.score(raw, drawn))

    def score(
        self,
        logits: Tensor,  # [tokens, vocabulary]
        next_tokens: Tensor,  # [tokens] int64
        num_best: int,
    ) -> tuple[TokenLogprob, ...]:
        """How likely each of the given tokens was, and the most likely ones: for prompts."""
        size = max(_SCORED_BYTES // (4 * self._vocab_size), 1)
        scored: list[TokenLogprob] = []
        for part, tokens in zip(torch.split(logits, size), torch.split(next_tokens, size), strict=True):
            scored += score_tokens(part.float(), tokens, [num_best] * len(tokens))
        return tuple(scored)

    def _batch_of(self, rows: Numbers) -> SamplingBatch:
        """Mostly the same rows draw step after step."""
        key = rows.tobytes()
        if self._batch is None or key != self._batch_rows:
            listed = rows.tolist()
            passes = (
                *self._edits.batch(listed),
                *self._bad_words.batch(listed),
                *self._penalties.batch(listed),
            )
            self._batch = SamplingBatch.of(self._columns, rows, passes, self._vocab_size)
            self._batch_rows = key
        return self._batch
