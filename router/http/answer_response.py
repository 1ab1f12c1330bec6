"""Sends one answer, whole or as a stream, for as long as the client is there. Returned by the two POST routes.

Nothing is sent before the first tokens have come, so whatever fails until then has its own status; only a stream that
waits very long is kept open by a heartbeat (`heartbeat.py`). Leaving, for whatever reason, leaves the generations,
which cancels them down to the blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.http.answer import Answer, Json, usage_json
from router.http.api_errors import api_error
from router.http.delta import Delta
from router.http.generate import Generations
from router.http.heartbeat import Heartbeat
from router.http.sse import DONE, HEADERS, events, json_bytes

_MANY_SCORED_TOKENS = 1000  # from here on writing takes milliseconds and goes to a thread


@dataclass(frozen=True, slots=True)
class StreamStyle:
    include_usage: bool = False  # a last chunk with it
    continuous_usage: bool = False  # and in every other one


class AnswerResponse(Response):
    """`style` None: in one piece."""

    def __init__(
        self, generations: Generations, answer: Answer, style: StreamStyle | None, request_id: str
    ) -> None:
        self._generations = generations
        self._answer = answer
        self._style = style
        self._request_id = request_id
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send_answer = self._send_whole if self._style is None else self._send_stream
        await _unless_client_leaves(receive, send_answer(send))

    async def _send_whole(self, send: Send) -> None:
        async with self._generations as running:
            async for burst in running.bursts():
                for delta in burst:
                    self._answer.add(delta)
        many = self._answer.num_scored_tokens > _MANY_SCORED_TOKENS
        body = await asyncio.to_thread(self._whole_body) if many else self._whole_body()
        await _start(send, 200, {"content-type": "application/json", **running.headers}, len(body))
        await _write(send, body, last=True)

    def _whole_body(self) -> bytes:
        return json_bytes(self._answer.whole(self._generations.usage))

    async def _send_stream(self, send: Send) -> None:
        heartbeat = Heartbeat(send)
        try:
            async with self._generations as running, aclosing(running.bursts()) as bursts:
                first = await anext(bursts)
                if not await heartbeat.stop():
                    await _start(send, 200, {**HEADERS, **running.headers})
                rest = await self._send_bursts(send, first, bursts)
        except Exception as error:
            if not await heartbeat.stop():
                raise
            rest = self._error_event(error)
        finally:
            await heartbeat.stop()
        await _write(send, rest + DONE, last=True)

    async def _send_bursts(
        self, send: Send, burst: list[Delta], bursts: AsyncGenerator[list[Delta]]
    ) -> bytes:
        """One write for each but the last; the stream's last words but for its end mark."""
        try:
            while burst and not self._generations.finished:
                await _write(send, self._shown(burst))
                burst = await anext(bursts, [])
            last = self._shown(burst)
        except Exception as error:  # too late for a status: the stream itself has to say it
            return self._error_event(error)
        assert self._style is not None, "only streams come in bursts"
        if not self._style.include_usage:
            return last
        return last + events([self._answer.usage_chunk(self._generations.usage)])

    def _error_event(self, error: Exception) -> bytes:
        return events([api_error(error, self._request_id).body])

    def _shown(self, burst: list[Delta]) -> bytes:
        if self._style is None or not self._style.continuous_usage:
            return b"".join(map(self._answer.events, burst))
        usage: Json = {"usage": usage_json(self._generations.usage)}
        return events(chunk | usage for delta in burst for chunk in self._answer.chunks(delta))


async def _unless_client_leaves(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Run `work`; a disconnect cancels it and is the end of the request. One task only watches; none is waited for."""
    working = asyncio.current_task()
    assert working is not None, "a request runs in a task"
    watching = asyncio.ensure_future(_until_disconnect(receive))

    def leave(_: object) -> None:
        working.cancel()

    watching.add_done_callback(leave)
    try:
        await work
    except asyncio.CancelledError:
        if not watching.done() or working.uncancel() > 0:
            raise  # somebody else wants its end
    finally:
        watching.remove_done_callback(leave)  # a sent answer looks like a disconnect, too
        watching.cancel()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    if length is not None:
        pairs.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _write(send: Send, body: bytes, last: bool = False) -> None:
    if body or last:
        await send({"type": "http.response.body", "body": body, "more_body": not last})
