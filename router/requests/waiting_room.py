"""Requests for which no replica is ready, and the timers of all that have one. Kept by `dispatcher.py`.

Waiting costs nothing here: whatever makes a replica ready looks in, and a timer ends what waits in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from router.requests.generation import Generation


class WaitingRoom:
    """First come, first out. `timed_out` is called for a request whose time is over, waiting or running."""

    def __init__(self, patience_s: float, timed_out: Callable[[Generation], None]) -> None:
        self.patience_s = patience_s  # for a request without a deadline of its own that comes from now on
        self._timed_out = timed_out
        self._waiting: dict[str, Generation] = {}  # by request id
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Generation]:
        """Of those that wait now; they may leave meanwhile."""
        return iter(list(self._waiting.values()))

    def set_deadline(self, generation: Generation, delay_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(delay_s, self._timed_out, generation)
        self._timers[generation.request.request_id] = timer

    def enter(self, generation: Generation) -> None:
        """Waits until its deadline, or as long as the router's patience lasts. Entering twice keeps its turn."""
        request_id = generation.request.request_id
        self._waiting[request_id] = generation
        if request_id not in self._timers:
            self.set_deadline(generation, self.patience_s)

    def leave(self, generation: Generation) -> None:
        """It has a place now; only a deadline of its own goes on."""
        self._waiting.pop(generation.request.request_id, None)
        if generation.expires_at is None:
            self._stop_timer(generation)

    def forget(self, generation: Generation) -> None:
        """It is over: neither a turn nor a timer is left of it."""
        self._waiting.pop(generation.request.request_id, None)
        self._stop_timer(generation)

    def _stop_timer(self, generation: Generation) -> None:
        timer = self._timers.pop(generation.request.request_id, None)
        if timer is not None:
            timer.cancel()
