"""Which prompt tokens a step has to score, for the rows whose requests asked for `prompt_logprobs`.

Used by the runners: a chunk's token at position p tells how likely the prompt's token at p + 1 was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from kernels.log_probabilities import MAX_SCORED_TOKENS
from protocol.messages import TokenLogprob
from workers.model.sampling.sampler import Sampler
from workers.model.step_batch import Numbers, RowLayout, column_of
from workers.step_plan import RowStart, StepPlan


@dataclass(frozen=True, slots=True)
class ScoredRow:
    prompt: Numbers
    num_alternatives: int


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    index: int  # of the plan's chunks
    places: Numbers  # in the batch
    next_tokens: Numbers  # [places] int64
    num_alternatives: int


class PromptScores:
    """Rows between their start and their end. Empty unless somebody asks, and then nothing is looked up."""

    def __init__(self) -> None:
        self._rows: dict[int, ScoredRow] = {}

    def start(self, start: RowStart) -> None:
        self.end(start.row)
        wanted = start.sampling.prompt_logprobs
        if wanted is not None:
            self._rows[start.row] = ScoredRow(column_of(start.prompt), wanted)

    def end(self, row: int) -> None:
        self._rows.pop(row, None)

    def chunks(self, plan: StepPlan, layout: RowLayout) -> list[ScoredChunk]:
        if not self._rows:
            return []
        found = []
        for index, chunk in enumerate(plan.chunks):
            row = self._rows.get(chunk.row)
            if row is None:
                continue
            next_tokens = row.prompt[chunk.start + 1 : chunk.start + 1 + chunk.num_tokens]
            places = layout.begins[plan.num_decodes + index] + np.arange(len(next_tokens))
            found.append(ScoredChunk(index, places, next_tokens, row.num_alternatives))
        return found


def score_chunks(
    hidden: Tensor,  # [places of all chunks, hidden]
    scored: Sequence[ScoredChunk],
    compute_logits: Callable[[Tensor], Tensor | None],  # called on every rank alike; logits on rank 0
    sampler: Sampler,
) -> dict[int, tuple[TokenLogprob, ...]]:
    """By index of the plan's chunks. Slice by slice, because a chunk's logits are larger than all else in a step."""
    found: dict[int, tuple[TokenLogprob, ...]] = {}
    for chunk in scored:
        own, hidden = hidden[: len(chunk.places)], hidden[len(chunk.places) :]
        parts = []
        for part, next_tokens in zip(
            torch.split(own, MAX_SCORED_TOKENS),
            torch.split(torch.from_numpy(chunk.next_tokens), MAX_SCORED_TOKENS),
            strict=True,
        ):
            logits = compute_logits(part)
            if logits is not None:
                parts.append(sampler.score(logits, next_tokens, chunk.num_alternatives))
        found[chunk.index] = tuple(chain.from_iterable(parts))
    return found
