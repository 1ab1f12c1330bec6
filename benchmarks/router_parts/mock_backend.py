"""What the mock engine is to our router, for routers that speak HTTP to their backends: chat answers of a fixed text.

    python benchmarks/router_parts/mock_backend.py --replicas 2 [--step-s 0.002]

Prints one port a replica. A plain asyncio protocol that knows just enough HTTP/1.1, so that it costs next to nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re

import uvloop
from deployment import HOST, MODEL

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
WORD = " quick"
HEAD = {"id": "chatcmpl-" + 32 * "0", "created": 1_700_000_000, "model": MODEL}


class Backend(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._received = b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport  # asyncio has set TCP_NODELAY

    def connection_lost(self, error: Exception | None) -> None:
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        num_body = 0 if length is None else int(length[1])
        if end and len(rest) >= num_body:
            self._received = rest[num_body:]
            self._answer(head, rest[:num_body])

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            self._whole({"status": "ok", "data": [{"id": MODEL}], "model_path": MODEL})
            return
        found = MAX_TOKENS.search(body)
        num_tokens = 16 if found is None else int(found[1])
        if re.search(rb'"stream": *true', body):
            self._answering = asyncio.create_task(self._stream(num_tokens))
        else:
            self._whole(whole_answer(num_tokens))

    def _whole(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    async def _stream(self, num_tokens: int) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for place in range(num_tokens):
            self._transport.write(chunked(event(place == num_tokens - 1)))
            await asyncio.sleep(self._step_s)
        self._transport.write(chunked(b"data: [DONE]\n\n") + chunked(b""))


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(last: bool) -> bytes:
    choice = {"index": 0, "delta": {"content": WORD}, "finish_reason": "length" if last else None}
    chunk = {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def whole_answer(num_tokens: int) -> object:
    message = {"role": "assistant", "content": WORD * num_tokens}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}


async def serve(num_replicas: int, step_s: float) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(num_replicas):
        server = await loop.create_server(lambda: Backend(step_s), HOST, 0)
        print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    uvloop.run(serve(options.replicas, options.step_s))
