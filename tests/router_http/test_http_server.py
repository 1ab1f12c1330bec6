"""The socket under the endpoint: where it listens, how it goes down."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from protocol.errors import InvalidRequest
from router.http.http_server import HttpServer


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, or for `/slow` never."""
    if scope["path"] == "/slow":
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def status(port: int, path: str = "/") -> int:
    async with httpx2.AsyncClient(verify=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code


async def test_port_zero_finds_a_free_one() -> None:
    async with HttpServer(app, "127.0.0.1", 0) as one, HttpServer(app, "127.0.0.1", 0) as other:
        assert one.port != other.port
        assert [await status(one.port), await status(other.port)] == [204, 204]


async def test_a_taken_port_is_refused_with_a_sentence() -> None:
    async with HttpServer(app, "127.0.0.1", 0) as taken:
        with pytest.raises(InvalidRequest, match=f"cannot listen on 127.0.0.1:{taken.port}"):
            HttpServer(app, "127.0.0.1", taken.port)


async def test_after_its_end_nobody_listens() -> None:
    async with HttpServer(app, "127.0.0.1", 0) as server:
        assert await status(server.port) == 204
    with pytest.raises(httpx2.ConnectError):
        await status(server.port)
    await server.aclose()  # a second time does no harm


async def test_a_server_that_never_began_gives_its_port_back() -> None:
    server = HttpServer(app, "127.0.0.1", 0)
    await server.aclose()
    async with HttpServer(app, "127.0.0.1", server.port):
        pass


async def test_a_request_that_does_not_end_is_cancelled_after_the_grace() -> None:
    async with HttpServer(app, "127.0.0.1", 0, grace_s=1) as server:
        hanging = asyncio.create_task(status(server.port, "/slow"))
        await asyncio.sleep(0.1)
    result = (await asyncio.gather(hanging, return_exceptions=True))[0]
    assert result == 500 or isinstance(result, httpx2.HTTPError)


async def test_cutting_the_ladder_short_cancels_what_runs() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await HttpServer(slow, "127.0.0.1", 0, grace_s=600).__aenter__()
    hanging = asyncio.create_task(status(server.port))
    await begun.wait()
    leaving = asyncio.create_task(server.aclose())
    await asyncio.sleep(0.2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    async with asyncio.timeout(10):
        await cancelled.wait()
    await asyncio.gather(hanging, return_exceptions=True)
