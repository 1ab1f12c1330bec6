"""What the clock and the policies ask of a simulated replica, whatever its fidelity.

Fluid: `replica.py`. Exact: `exact.py`. Driven by `simulation.py`, read by the policies through `fleet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.events import KvEvent
from protocol.messages import Load
from simulator.sequence import SimulatedSequence

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Happened:
    """What ended in one moment. Who has one token in all is in both."""

    prefilled: Sequence[SimulatedSequence] = ()
    ended: Sequence[SimulatedSequence] = ()
    events: Sequence[KvEvent] = ()  # what exact replicas' caches gained and lost


class ReplicaCache(Protocol):
    """In blocks of the trace."""

    @property
    def num_pinned(self) -> int:
        """In use by what runs."""
        ...

    def __len__(self) -> int:
        """All that hold something, in use or not."""
        ...

    def touch(self, blocks: Sequence[int]) -> None:
        """Cached ones that will be hit soon are reused last."""
        ...


class SimulatedReplica(Protocol):
    busy_s: float  # with prefills

    @property
    def load(self) -> Load:
        """Of now, as it reports it."""
        ...

    @property
    def cache(self) -> ReplicaCache: ...

    @property
    def next_event_s(self) -> float:
        """When `handle` wants to be called; NEVER while there is nothing to do."""
        ...

    def slow_down(self, factor: float) -> None:
        """From now on all takes so many times as long."""
        ...

    def add(self, sequence: SimulatedSequence, now_s: float) -> Load | None:
        """It has arrived. Returns the load with it, if the replica does not wait for the end of a step to tell it."""
        ...

    def handle(self, now_s: float) -> Happened:
        """`now_s` is the time that `next_event_s` said. Sets `ttft_s` and `cached_tokens` of what was prefilled."""
        ...
