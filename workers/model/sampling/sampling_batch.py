"""What one composition of rows needs of the sampler, as tensors: made when the rows of a step change, used every step.

Made by `sampler.py`. It tells which passes run: a batch that only wants the most likely tokens has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.argmax import argmax
from protocol.messages import TokenLogprob
from workers.model.sampling.places import Numbers, Places, at_places, places_of, take
from workers.model.sampling.random_draw import RandomDraw
from workers.model.sampling.sampling_state import SamplingColumns, Wish
from workers.model.sampling.token_logprobs import score_tokens

_CACHED_BYTES = 8 << 20  # of logits that are drawn from at a time: of 32,000 tokens, 64 rows measured best


class LogitPass(Protocol):
    """Changes the logits of some rows before a draw, and learns what was drawn."""

    def apply(self, logits: Tensor, positions: Tensor) -> None: ...  # [batch, vocabulary] fp32, [batch] int64

    def remember(self, drawn: Tensor) -> None: ...  # [batch] int64


@dataclass(frozen=True, slots=True)
class AskedLogprobs:
    """The rows that want to know how likely their tokens were."""

    places: Places
    indices: tuple[int, ...]  # the same
    widths: tuple[int, ...]  # alternatives that each wants

    def keep(self, logits: Tensor) -> Tensor:
        """A copy of their raw logits, before anything changes them: [asking, vocabulary]."""
        raw = take(logits, self.places)
        return raw.clone() if isinstance(self.places, slice) else raw

    def score(
        self,
        raw: Tensor,  # [asking, vocabulary] fp32, of `keep`
        drawn: Tensor,  # [batch] int64
    ) -> dict[int, TokenLogprob]:  # by place in the batch
        scores = score_tokens(raw, take(drawn, self.places), self.widths)
        return dict(zip(self.indices, scores, strict=True))


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    passes: tuple[LogitPass, ...]
    greedy: Places | None
    random: tuple[RandomDraw, ...]
    asked: AskedLogprobs | None

    @classmethod
    def of(
        cls,
        columns: SamplingColumns,
        rows: Numbers,  # [batch] int64
        passes: Iterable[LogitPass],
        vocab_size: int,
    ) -> SamplingBatch:
        wishes = columns.wishes[rows]
        assert (wishes & Wish.RUNNING).all(), f"rows {rows[wishes == 0].tolist()} have not been started"
        passes = tuple(passes)
        if not passes and (wishes == Wish.RUNNING).all():
            return cls((), None, (), None)  # argmax alone, which needs no places
        random = (wishes & Wish.RANDOM) != 0
        return cls(
            passes=passes,
            greedy=places_of(~random),
            random=tuple(
                RandomDraw.of(columns, rows, indices) for indices in _parts(random.nonzero()[0], vocab_size)
            ),
            asked=_asked(columns, rows),
        )

    @property
    def is_argmax(self) -> bool:
        """No row wants more than its most likely token."""
        return not (self.passes or self.random or self.asked)

    def draw(
        self,
        logits: Tensor,  # [batch, vocabulary] fp32, changed by all passes; consumed
        positions: Tensor,  # [batch] int64
    ) -> Tensor:  # [batch] int64
        drawn = torch.empty_like(positions)
        if self.greedy is not None:
            drawn[self.greedy] = argmax(take(logits, self.greedy))
        for each in self.random:
            drawn[each.places] = each.draw(logits, positions)
        return drawn


def _parts(indices: Numbers, vocab_size: int) -> list[Numbers]:
    """Rows that are drawn together: as many as a cache holds."""
    size = max(_CACHED_BYTES // (4 * vocab_size), 1)
    return [indices[begin : begin + size] for begin in range(0, len(indices), size)]


def _asked(columns: SamplingColumns, rows: Numbers) -> AskedLogprobs | None:
    (indices,) = (columns.wishes[rows] & Wish.LOGPROBS).nonzero()
    if not len(indices):
        return None
    widths = columns.num_logprobs[rows[indices]]
    return AskedLogprobs(at_places(indices), tuple(indices.tolist()), tuple(widths.tolist()))
