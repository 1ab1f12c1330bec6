"""Who asks: chat requests over one kept-alive HTTP connection, or the same prompts straight to a mock engine.

Both know as little as they can, so that what is measured is the other side.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from router_parts.conversation import Conversation
from router_parts.deployment import BLOCK_SIZE, HOST, SECRETS, identity

from protocol.block_hash import BlockHasher, join_digests
from protocol.codec import decode, encode
from protocol.frames import frame, read_frame
from protocol.handshake import greet_replica
from protocol.messages import StepFrame, Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from router.text.tokenizer import Tokenizer

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Timing:
    first_s: float  # until the first event of a stream, or the first bytes of a whole answer
    total_s: float


class Client(Protocol):
    """One connection."""

    async def ask(self) -> Timing: ...


class HttpClient(asyncio.Protocol):
    """One request at a time, each read to its end."""

    def __init__(self, port: int, conversation: Conversation) -> None:
        self._conversation = conversation
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}:{port}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._answer: _Reading | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.ended.done():
            self._answer.ended.set_exception(
                error or ConnectionResetError("the server closed the connection")
            )

    def data_received(self, data: bytes) -> None:
        assert self._answer is not None, "bytes without a request"
        self._answer.feed(data)

    async def ask(self) -> Timing:
        body = self._conversation.body()
        request = self._head + str(len(body)).encode() + b"\r\n\r\n" + body
        self._answer = _Reading()
        self._transport.write(request)
        return await self._answer.ended


class _Reading:
    """One answer as it comes. Its time begins when it is made."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Timing] = asyncio.get_running_loop().create_future()
        self._head = b""  # empty again once it has been read
        self._missing: int | None = None  # bytes of the body; None: it comes in chunks
        self._tail = b""
        self._in_body = False
        self._first_s: float | None = None
        self._began = time.perf_counter()

    def feed(self, data: bytes) -> None:
        body = data if self._in_body else self._body_after_head(data)
        if not body:
            return
        if self._missing is not None:
            self._missing -= len(body)
            self._first_s = self._first_s or self._elapsed_s
            ended = self._missing <= 0
        else:
            if self._first_s is None and b"data: " in body:
                self._first_s = self._elapsed_s
            self._tail = (self._tail + body)[-len(LAST_CHUNK) :]
            ended = self._tail == LAST_CHUNK
        if ended:
            assert self._first_s is not None, "a stream without an event"
            self.ended.set_result(Timing(self._first_s, self._elapsed_s))

    @property
    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def _body_after_head(self, data: bytes) -> bytes:
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return b""
        assert b" 200 " in head[:16], self._head.decode()
        self._in_body = True
        length = LENGTH.search(head)
        self._missing = None if length is None else int(length[1])
        return body


class EngineClient:
    """What a router does once a prompt is tokenized and placed, and nothing else: the floor of any router's time."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tokenizer: Tokenizer,
        conversation: Conversation,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tokenizer = tokenizer
        self._conversation = conversation
        self._hasher = BlockHasher(SECRETS.hash_secret, BLOCK_SIZE)
        self._sampling = SamplingParams(max_tokens=conversation.max_tokens, seed=0, temperature=0.0)
        self._numbers = count()

    async def ask(self) -> Timing:
        """Tokenizing and hashing are done before the clock starts."""
        text = self._tokenizer.apply_chat_template(self._conversation.messages())
        token_ids = pack_tokens(self._tokenizer.encode(text, add_special_tokens=False))
        digests = join_digests(self._hasher.digests(token_ids))
        submit = Submit(f"direct-{next(self._numbers)}", token_ids, self._sampling, digests)
        began = time.perf_counter()
        self._writer.write(frame(encode(submit)))
        first_s: float | None = None
        async for step in self._answer():
            first_s = first_s or time.perf_counter() - began
            if any(output.finish_reason is not None for output in step.outputs):
                return Timing(first_s, time.perf_counter() - began)
        raise ConnectionResetError("the engine closed the connection")

    async def _answer(self) -> AsyncIterator[StepFrame]:
        """Steps that bring a token. There is one request at a time."""
        while (payload := await read_frame(self._reader)) is not None:
            message = decode(payload)
            if isinstance(message, StepFrame) and (message.outputs or message.rows):
                yield message


@asynccontextmanager
async def http_client(port: int, conversation: Conversation) -> AsyncIterator[HttpClient]:
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: HttpClient(port, conversation), HOST, port)
    try:
        yield client
    finally:
        transport.close()


@asynccontextmanager
async def engine_client(
    port: int, tokenizer: Tokenizer, conversation: Conversation
) -> AsyncIterator[EngineClient]:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        await greet_replica(reader, writer, SECRETS.hello_key, "direct", identity())
        yield EngineClient(reader, writer, tokenizer, conversation)
    finally:
        writer.close()
