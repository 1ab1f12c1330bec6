"""Serves an ASGI app on one socket inside a running event loop. Owned by whoever runs a router process.

Leaving is a ladder: no new connections, idle ones closed, running requests given `grace_s`, then cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from protocol.errors import InvalidRequest
from router.http.http_protocol import HttpProtocol

_BACKLOG = 2048
_TICK_S = 1.0
_KEEP_ALIVE_S = 75  # longer than load balancers keep an idle connection, so that they close it, not we


class HttpServer:
    """`async with HttpServer(app, host, port) as server: server.port`. Port 0: any that is free."""

    def __init__(self, app: Any, host: str, port: int, *, grace_s: int = 10) -> None:
        self.host = host
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                access_log=False,
                log_config=None,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=grace_s,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HttpServer:
        task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        self._task = task
        begun = asyncio.create_task(self._server.begun.wait())
        await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if task.done():
            task.result()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self, grace_s: float | None = None) -> None:
        """Down the ladder, with another grace if one is given; harmless a second time.

        Being cancelled on the way is the ladder's last step: what still runs is cancelled at once.
        """
        self._server.stop(grace_s)
        try:
            if self._task is not None:
                await self._task
        finally:
            self._server.cancel_requests()
            self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn's, but the process's signals are not its business, and it says when it has begun."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self, grace_s: float | None) -> None:
        if grace_s is not None:
            self.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # it takes floats
        self.should_exit = True
        self._stopping.set()

    def cancel_requests(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()

    async def main_loop(self) -> None:
        """A tick a second, which renews the date header; uvicorn's own loop looks ten times for its end."""
        while not self._stopping.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK_S)


def _listen(host: str, port: int) -> socket.socket:
    """Raises InvalidRequest when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InvalidRequest(
            f"cannot listen on {host}:{port}: {error.strerror or error}", param="port"
        ) from error
    return listener
