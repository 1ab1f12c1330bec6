"""Keeps a stream open that has nothing to say yet: comments between events, which clients read over.

For requests that wait long for their first token: a replica may still have to start, and load balancers close what is
silent for a minute. Used by `answer_response.py`. Costs one timer where the first token is in time.
"""

from __future__ import annotations

import asyncio

from starlette.types import Send

from router.http.sse import COMMENT, HEADERS

FIRST_AFTER_S = 20.0  # until then a failure still has a status of its own
EVERY_S = 15.0


class Heartbeat:
    """Begins the response when the first beat is due; whoever stops it is told whether that has happened."""

    def __init__(self, send: Send, first_after_s: float | None = None) -> None:
        self._send = send
        self._task: asyncio.Task[None] | None = None
        delay_s = FIRST_AFTER_S if first_after_s is None else first_after_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._start)

    async def stop(self) -> bool:
        """No beat comes any more. True: the response has begun, with status 200 and the headers of a stream."""
        self._timer.cancel()
        if self._task is None:
            return False
        self._task.cancel()
        await asyncio.wait([self._task])
        return True

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        head = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})
        while True:
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            await asyncio.sleep(EVERY_S)
