"""The deployment's diary: what happened to which unit, and why. Bounded; kept with the state, shown by `status`."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 50


@dataclass(frozen=True, slots=True)
class Event:
    at: float  # seconds since the epoch
    unit: str  # empty: of the deployment
    text: str


def noted(events: tuple[Event, ...], event: Event) -> tuple[Event, ...]:
    """With one more; the oldest go."""
    return (*events, event)[-MOST:]
