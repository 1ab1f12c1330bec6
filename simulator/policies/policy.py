"""What the simulation asks of a routing policy. Heirs: the other files here; made by `registry.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from simulator.fleet import Fleet
from simulator.trace import TraceRequest


class Policy(ABC):
    """One router in front of the whole fleet."""

    shares_cache = False  # whether all replicas have one cache of N times the size

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    @abstractmethod
    def choose(self, request: TraceRequest) -> int:
        """The replica that takes it."""

    def dispatched(self, request: TraceRequest, replica: int) -> None:  # noqa: B027
        """It is about to be sent there; nothing is to be done by default."""

    def prefilled(self, request: TraceRequest, replica: int) -> None:  # noqa: B027
        """Its first token has come."""

    def ended(self, request: TraceRequest, replica: int) -> None:  # noqa: B027
        """Its last token has come."""

    def reported(self, replica: int) -> None:  # noqa: B027
        """A slice of a prefill or a sequence has ended there, so the replica says how busy it is."""
