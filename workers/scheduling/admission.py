"""Who gets a step's prefill budget first: the border between `prefill.py`, which asks, and the orders that answer.

An order holds every sequence that still has tokens to prefill, whether it has begun or not. It knows no blocks, no
rows and no budget, and reads no clock, so that a simulation can compare orders. Ours are in `admission_orders.py`.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from workers.scheduling.sequence import Sequence

ASSUMED_PREFILL_S_PER_TOKEN = 1 / 16_000  # of a replica that has not measured its own yet


@dataclass(frozen=True, slots=True)
class Moment:
    """All that an order may know beside the sequences."""

    now_s: float  # a monotonic clock, of the engine or simulated
    prefill_s_per_token: float
    num_uncached: Callable[[Sequence], int]  # tokens left to prefill, the cache re-read for those not begun
    prefill_s_per_pair: float = 0.0  # of each token and each one before it: attention
    decoding: abc.Sequence[Sequence] = ()  # whose generated tokens are still to be charged to their tenants


class AdmissionOrder(Protocol):
    def add(self, sequence: Sequence) -> None: ...

    def remove(self, sequence: Sequence) -> None: ...

    def __contains__(self, sequence: Sequence) -> bool: ...

    def __len__(self) -> int: ...

    def ranked(self, moment: Moment) -> Iterable[Sequence]:
        """All of them, the best first, anew each step. The order is not changed while it is read."""
        ...

    def check_integrity(self) -> None: ...

    @property
    def highest_level(self) -> int:
        """Of any tenant: nobody displaces another for having had less who is on it."""
        ...

    def charge(self, sequence: Sequence, num_prompt_tokens: int = 0) -> None:
        """So many tokens of its prompt have been computed, and some generated since it was charged last."""
        ...


def aged_class(sequence: Sequence, now_s: float, ageing_s: float | None) -> int:
    """Its priority class, better by one for every `ageing_s` that it has waited; None: it stays what it is."""
    priority = sequence.live.request.priority
    if ageing_s is None:
        return priority
    return priority - int((now_s - sequence.waiting_since_s) / ageing_s)
