"""One replica's way out at this router: no new requests, then, in its time or moved elsewhere, no live ones.

Begun by `replica_view.py`, which tells it when nothing is live there; asked by whoever waits for the end of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ReplicaDrain:
    """From the wish to the end or to its being called off. Whoever waits may leave: the drain goes on."""

    def __init__(self, on_overdue: Callable[[], None]) -> None:
        self._on_overdue = on_overdue
        self._ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self.overdue = False

    async def wait(self, deadline_s: float) -> bool:
        """Until nothing is live there: True. False: it was called off. Of several deadlines the earliest counts."""
        self._hurry(deadline_s)
        return await asyncio.shield(self._ended)

    def finish(self) -> None:
        """Nothing is live there, and nothing new comes."""
        self._end(True)

    def call_off(self) -> None:
        self._end(False)

    def _hurry(self, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._ended.done() or self.overdue:
            return
        if self._timer is not None and self._timer.when() <= loop.time() + deadline_s:
            return
        self._stop_timer()
        self._timer = loop.call_later(max(0.0, deadline_s), self._run_out)

    def _run_out(self) -> None:
        self._timer, self.overdue = None, True
        self._on_overdue()

    def _end(self, emptied: bool) -> None:
        self._stop_timer()
        self.overdue = False
        if not self._ended.done():
            self._ended.set_result(emptied)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
