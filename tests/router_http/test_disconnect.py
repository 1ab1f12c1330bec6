"""A client that leaves takes its work with it, streaming or not; a server that goes down ends what runs."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest


@pytest.fixture(autouse=True)
def held(router: Any, tokenizer: Any) -> Any:
    script = router.says(tokenizer, "hello world")
    script.gate = asyncio.Event()
    script.gate_at = 3
    return script


async def post(url: str, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = json.dumps({"prompt": "a", **fields}).encode()
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def opened(router: Any) -> None:
    while router.num_open == 0:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "fields", [{}, {"stream": True}, {"prompt": ["a", "b"]}, {"prompt": ["a", "b"], "stream": True}]
)
async def test_a_client_that_leaves_frees_its_blocks(url: str, router: Any, fields: dict[str, Any]) -> None:
    _, writer = await post(url, **fields)
    await opened(router)
    writer.close()
    async with asyncio.timeout(10):
        await router.left.wait()
        await asyncio.sleep(0)
    assert router.num_open == 0


async def test_a_client_that_leaves_in_mid_stream_frees_its_blocks(url: str, router: Any) -> None:
    reader, writer = await post(url, stream=True)
    await reader.readuntil(b"data: ")
    writer.transport.abort()
    async with asyncio.timeout(10):
        await router.left.wait()
    assert router.num_open == 0


async def test_a_client_that_leaves_while_it_waits_for_a_place_is_forgotten(url: str, router: Any) -> None:
    waiting, gone = asyncio.Event(), asyncio.Event()

    class Waits:
        async def __aenter__(self) -> None:
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        async def __aexit__(self, *exc: object) -> None: ...

    router.open = lambda request: Waits()
    _, writer = await post(url)
    await waiting.wait()
    writer.close()
    async with asyncio.timeout(10):
        await gone.wait()


async def test_a_body_that_never_ends_does_no_harm(url: str, router: Any) -> None:
    where = urlsplit(url)
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert router.requests == []


async def answer(app: Any, left: asyncio.Event) -> None:
    """Of one request whose client leaves when it is told to."""
    messages = [{"type": "http.request", "body": json.dumps({"prompt": "a"}).encode()}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody is there to be sent {message}")

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await app(scope, receive, send)


async def test_a_request_whose_client_left_has_ended_well(router: Any, app: Any) -> None:
    left = asyncio.Event()
    request = asyncio.create_task(answer(app, left))
    await opened(router)
    left.set()
    await request
    assert not request.cancelled() and request.cancelling() == 0


async def test_a_request_that_its_server_cancels_is_cancelled(router: Any, app: Any) -> None:
    request = asyncio.create_task(answer(app, asyncio.Event()))
    await opened(router)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert router.num_open == 0
