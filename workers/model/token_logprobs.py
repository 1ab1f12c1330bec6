"""What requests read of a distribution: a token's log-probability, its rank, the most likely tokens with theirs.

Called by the sampler for drawn tokens and for prompts. Always of the raw logits: no temperature, penalty or mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.largest import largest_with_places
from protocol.messages import TokenLogprob


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Still on the device."""

    own: Tensor  # [tokens] fp32
    ranks: Tensor  # [tokens] fp32, whole numbers from 1 on
    best: Tensor  # [tokens, k] fp32, descending
    best_ids: Tensor  # [tokens, k] int64

    @classmethod
    def of(
        cls,
        logits: Tensor,  # [tokens, vocabulary] fp32
        token_ids: Tensor,  # [tokens] int64
        num_best: int,
    ) -> TokenScores:
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(1, token_ids[:, None])
        best, best_ids = largest_with_places(logprobs, num_best)
        ranks = torch.gt(logprobs, own, out=logprobs).sum(-1) + 1  # in fp32: booleans are slow on a CPU
        return cls(own.squeeze(-1), ranks, best, best_ids)

    def read(self, widths: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """On the host. `widths`: how many of the best each token's request wants."""
        columns = (each.tolist() for each in (self.own, self.ranks, self.best_ids, self.best))
        return tuple(
            TokenLogprob(own, int(rank), tuple(zip(ids[:width], values[:width], strict=True)))
            for own, rank, ids, values, width in zip(*columns, widths, strict=True)
        )


class DrawnLogprobs(Mapping[int, TokenLogprob]):
    """By place in the batch. Read from the device on first use, so that a launched step is not waited for."""

    def __init__(self, places: Sequence[int], scores: TokenScores, widths: Sequence[int]) -> None:
        self._places = places
        self._scores = scores
        self._widths = widths
        self._entries: dict[int, TokenLogprob] | None = None

    def __getitem__(self, place: int) -> TokenLogprob:
        return self._read()[place]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _read(self) -> dict[int, TokenLogprob]:
        if self._entries is None:
            self._entries = dict(zip(self._places, self._scores.read(self._widths), strict=True))
        return self._entries
