"""The first four messages of a connection: both sides prove the cluster's key, then compare identities.

    replica                         router
    Challenge(version, nonce)  ->
                               <-   Hello(version, nonce', HMAC(nonce ‖ nonce'), identity)
    Welcome(HMAC(nonce' ‖ nonce), incarnation, identity) or Refused(reason)

Used by `workers/server.py` and `router/replicas/replica_link.py`. Nothing else is read before it has ended well.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.frames import frame, read_frame
from protocol.messages import PROTOCOL_VERSION, Challenge, Hello, Identity, Refused, Welcome

HANDSHAKE_TIMEOUT_S = 5.0
MAX_HELLO_BYTES = 16 * 1024
NONCE_BYTES = 16


T = TypeVar("T")


# Every field of an identity, the most telling first, and what helps when the two sides differ in it.
REMEDIES = {
    "model": "start both with one served model name",
    "hash_algorithm": "upgrade the older of the two",
    "template_digest": "give both the same chat template, and restart the one that began with the older files",
    "tokenizer_digest": "give both the same tokenizer files, and restart the one that began with the older ones",
    "model_digest": "give both the same model files, and restart the one that began with the older ones",
    "block_size": "start every replica of a deployment with one --block-size",
    "hash_fingerprint": "start both from the same deployment: they hash with different secrets",
}


class HelloRefused(ProtocolError):
    """The peers do not fit; the reason says how. Trying again does not help until one of them changes."""

    code = "hello_refused"


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a replica tells a router that it accepts."""

    replica_id: str
    incarnation: int
    identity: Identity
    max_model_len: int
    num_blocks: int


async def greet_router(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, facts: ReplicaFacts
) -> Hello:
    """The replica's side. Raises ProtocolError, after having told the peer why."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    writer.write(frame(encode(Challenge(PROTOCOL_VERSION, nonce))))
    hello = await _expect(reader, Hello)
    reason = _objection(hello, nonce, key, facts.identity)
    if reason is not None:
        writer.write(frame(encode(Refused("hello_refused", reason))))
        await writer.drain()
        raise HelloRefused(reason)
    proof = _proof(key, b"replica", hello.nonce, nonce)
    welcome = Welcome(
        PROTOCOL_VERSION,
        proof,
        facts.replica_id,
        facts.incarnation,
        facts.identity,
        facts.max_model_len,
        facts.num_blocks,
    )
    writer.write(frame(encode(welcome)))
    return hello


async def greet_replica(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, router_id: str, identity: Identity
) -> Welcome:
    """The router's side. Raises HelloRefused with the reason, ProtocolError when the peer is none of ours."""
    challenge = await _expect(reader, Challenge)
    nonce = secrets.token_bytes(NONCE_BYTES)
    proof = _proof(key, b"router", challenge.nonce, nonce)
    writer.write(frame(encode(Hello(PROTOCOL_VERSION, nonce, proof, router_id, identity))))
    answer = await _expect(reader, Welcome)
    if not hmac.compare_digest(answer.proof, _proof(key, b"replica", nonce, challenge.nonce)):
        raise HelloRefused("the replica does not know this cluster's key")
    reason = mismatch(identity, answer.identity)
    if reason is not None:
        raise HelloRefused(reason)
    return answer


def _objection(hello: Hello, nonce: bytes, key: bytes, identity: Identity) -> str | None:
    if not hmac.compare_digest(hello.proof, _proof(key, b"router", nonce, hello.nonce)):
        return "the router does not know this cluster's key"
    if hello.version < PROTOCOL_VERSION - 1:
        return (
            f"the router speaks protocol {hello.version}, this replica {PROTOCOL_VERSION}: upgrade the router"
        )
    return mismatch(hello.identity, identity)


def mismatch(router: Identity, replica: Identity) -> str | None:
    """The first field in which they differ, as a sentence; what one of them does not know is not compared."""
    for name, remedy in REMEDIES.items():
        wanted, found = getattr(router, name), getattr(replica, name)
        if wanted is not None and found is not None and wanted != found:
            secret = name == "hash_fingerprint"
            detail = "" if secret else f" ({wanted!r} at the router, {found!r} at the replica)"
            return f"{name} differs{detail}: {remedy}"
    return None


def adopted(identity: Identity, welcome: Welcome) -> Identity:
    """The router's identity with what it has now learnt from its first replica."""
    unknown = [each.name for each in fields(Identity) if getattr(identity, each.name) is None]
    return replace(identity, **{name: getattr(welcome.identity, name) for name in unknown})


def _proof(key: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.new(key, role + first + second, hashlib.sha256).digest()


async def _expect(reader: asyncio.StreamReader, expected: type[T]) -> T:
    """The next message, which must be of this type. Raises HelloRefused when the peer refuses instead."""
    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
        payload = await read_frame(reader, MAX_HELLO_BYTES)
    if payload is None:
        raise ProtocolError("the peer closed its connection before the handshake ended")
    received = decode(payload)
    if isinstance(received, Refused):
        raise HelloRefused(received.reason)
    if not isinstance(received, expected):
        raise ProtocolError(f"the peer sent {type(received).__name__} in the handshake")
    return received
