"""What a router knows of a model's load: asked by the controller, which decides from it how many replicas it gets."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Load


@dataclass(frozen=True, slots=True)
class RouterDemand:
    """Of one version of one model. Loads and spent prefill are the replicas' own word, the same at every router; the
    others are this router's part."""

    loads: tuple[tuple[str, Load], ...] = ()  # of every replica that has reported, by its id
    prefill_spent: float = 0.0  # seconds of prefill that all replicas spend, a second
    prefill_sent: float = 0.0  # seconds of prefill that this router sends out, a second
    num_requests: int = 0  # that have come to this router since its start
    num_waiting: int = 0  # of these, those that have no replica
    version: str = ""  # of the `ServedModel`
