"""What happened to which unit of a deployment, and why. Bounded; kept with the state, shown by `trunkline status`."""

from __future__ import annotations

from protocol.membership import Event

MOST = 50


def noted(events: tuple[Event, ...], event: Event) -> tuple[Event, ...]:
    """With one more; the oldest go."""
    return (*events, event)[-MOST:]
