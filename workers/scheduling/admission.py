"""Who gets a step's prefill budget first. Asked by `scheduler.py` once a step; knows no blocks and no budget.

An order holds every sequence that still has tokens to prefill, whether it has begun or not.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Protocol

from workers.scheduling.sequence import Sequence


class AdmissionOrder(Protocol):
    """Iterated anew each step, and not changed meanwhile. Better priority classes always come first."""

    def add(self, sequence: Sequence) -> None: ...

    def remove(self, sequence: Sequence) -> None: ...

    def __contains__(self, sequence: Sequence) -> bool: ...

    def __iter__(self) -> Iterator[Sequence]: ...

    def __len__(self) -> int: ...


class FirstComeFirstServed:
    """By priority class, then by arrival. A preempted sequence gets its old place back."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        assert sequence not in self, "a sequence queues once"
        insort(self._queue, sequence, key=_place)

    def remove(self, sequence: Sequence) -> None:
        assert sequence in self, "only a queued sequence can leave"
        del self._queue[bisect_left(self._queue, _place(sequence), key=_place)]

    def __contains__(self, sequence: Sequence) -> bool:
        at = bisect_left(self._queue, _place(sequence), key=_place)
        return at < len(self._queue) and self._queue[at] is sequence

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def __len__(self) -> int:
        return len(self._queue)


def _place(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.live.request.priority, sequence.live.arrival, sequence.index
