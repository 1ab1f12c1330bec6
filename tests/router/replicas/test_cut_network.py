"""The network between router and replica is cut without a word: a proxy in between forwards nothing any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

Make = Callable[..., Awaitable[Any]]
WATCHFUL = {"ping_interval_s": 0.05, "ping_timeout_s": 0.5}


class Proxy:
    """Forwards both ways until `cut`; then both sides wait, their connections open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        self._flows.clear()

    def mend(self) -> None:
        self._flows.set()

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    await self._flows.wait()
                    sink.write(data)
        finally:
            sink.transport.abort()


@pytest.fixture
async def proxied(make_replica: Make) -> AsyncIterator[tuple[Any, Proxy, Any]]:
    """A replica that steps when told, the proxy before it, and what the membership says of them."""
    replica = await make_replica("a", automatic=False)
    info = replica.info()
    proxy = Proxy(info.host, info.port)
    await proxy.start()
    yield replica, proxy, replica.info(port=proxy.port)
    await proxy.aclose()


async def test_its_requests_move_within_the_heartbeat(
    proxied: tuple[Any, Proxy, Any],
    make_replica: Make,
    make_router: Make,
    make_request: Any,
    eventually: Make,
) -> None:
    replica, proxy, info = proxied
    router = await make_router([], **WATCHFUL)
    await router.set_replicas([info])
    await eventually(lambda: router.ready)
    async with router.open(make_request(max_tokens=4)) as generation:
        await eventually(lambda: len(replica.running) == 1)
        await router.set_replicas([info, (await make_replica("b")).info()])
        replica.step()
        proxy.cut()
        assert [token async for output in generation for token in output.token_ids] == [0, 1, 2, 3]
    lost = router.status().replicas[0]
    assert generation.replica == "b" and not lost.connected
    assert "answer" in lost.detail or "heard" in lost.detail


async def test_it_is_used_again_once_the_network_is_back(
    proxied: tuple[Any, Proxy, Any], make_router: Make, eventually: Make
) -> None:
    _, proxy, info = proxied
    router = await make_router([], **WATCHFUL, connect_timeout_s=0.1, reconnect_most_s=0.05)
    await router.set_replicas([info])
    await eventually(lambda: router.ready)
    proxy.cut()
    await eventually(lambda: not router.ready)
    proxy.mend()
    await eventually(lambda: router.ready)
