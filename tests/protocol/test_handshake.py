"""The handshake over real sockets: peers that fit meet, the others learn why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import pytest

from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.frames import frame, read_frame
from protocol.handshake import (
    REMEDIES,
    HelloRefused,
    ReplicaFacts,
    adopted,
    greet_replica,
    greet_router,
    mismatch,
)
from protocol.messages import Challenge, Identity, Welcome

KEY = b"k" * 32
IDENTITY = Identity("sapling", "model", "tokenizer")
WHOLE = Identity("sapling", "model", "tokenizer", 16, "f", "algorithm", "template")
FACTS = ReplicaFacts("replica-0", 3, WHOLE, 4096, 100)
Outcome = list[BaseException | None]


@asynccontextmanager
async def replica(outcome: Outcome) -> AsyncIterator[int]:
    """A listening replica that notes how each handshake ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await greet_router(reader, writer, KEY, FACTS)
            outcome.append(None)
        except (ProtocolError, TimeoutError) as error:
            outcome.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def meet(port: int, key: bytes = KEY, identity: Identity = IDENTITY) -> Welcome:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await greet_replica(reader, writer, key, "router-0", identity)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_router_adopts_what_it_does_not_know_yet() -> None:
    async with replica([]) as port:
        welcome = await meet(port)
    assert (welcome.replica_id, welcome.incarnation, welcome.num_blocks) == ("replica-0", 3, 100)
    assert adopted(IDENTITY, welcome) == FACTS.identity


async def test_another_key_is_refused_by_the_replica() -> None:
    outcome: Outcome = []
    async with replica(outcome) as port:
        with pytest.raises(HelloRefused, match="does not know this cluster's key"):
            await meet(port, key=b"x" * 32)
    assert isinstance(outcome[0], HelloRefused)


@pytest.mark.parametrize("field", [each.name for each in fields(Identity)])
async def test_a_mismatch_is_refused_by_name_and_with_what_to_do(field: str) -> None:
    async with replica([]) as port:
        other: Any = {field: 32 if field == "block_size" else "other"}
        with pytest.raises(HelloRefused, match=rf"^{field} differs.*: {REMEDIES[field]}$"):
            await meet(port, identity=replace(IDENTITY, **other))


async def test_another_template_is_named_before_the_tokenizer_that_it_is_part_of() -> None:
    async with replica([]) as port:
        with pytest.raises(HelloRefused, match=r"^template_digest differs"):
            await meet(port, identity=replace(WHOLE, template_digest="other", tokenizer_digest="other"))


def test_an_older_replica_that_does_not_say_its_template_is_not_refused_for_that() -> None:
    assert mismatch(WHOLE, replace(WHOLE, template_digest=None, hash_algorithm=None)) is None


async def test_the_reason_never_tells_the_fingerprint() -> None:
    async with replica([]) as port:
        with pytest.raises(HelloRefused) as refused:
            await meet(port, identity=replace(IDENTITY, hash_fingerprint="other"))
    assert "other" not in str(refused.value)


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", frame(b"\x90"), b"\0\0", b""])
async def test_a_stranger_is_turned_away(noise: bytes) -> None:
    outcome: Outcome = []
    async with replica(outcome) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(noise)
        writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()
    assert isinstance(outcome[0], ProtocolError)


async def test_a_replica_that_does_not_know_the_key_is_found_out() -> None:
    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(encode(Challenge(1, b"n" * 16))))
        await read_frame(reader)
        writer.write(frame(encode(Welcome(1, b"guess", "replica-0", 3, FACTS.identity, 4096, 100))))
        writer.close()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0)
    async with server:
        with pytest.raises(HelloRefused, match="replica does not know"):
            await meet(server.sockets[0].getsockname()[1])
