"""One connection to one replica, and what breaks it: a cut, half a frame, a wrong Hello, silence, a slow reader."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.block_hash import SECRET_BYTES
from protocol.codec import encode
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import ReplicaLost
from protocol.frames import frame
from protocol.messages import Identity, Ping, Pong, SnapshotChunk, Touch, Welcome
from router.deployment import Deployment
from router.replicas.replica_link import ReplicaLink
from router.router_config import RouterConfig

Make = Callable[..., Awaitable[Any]]
IDENTITY = Identity("model", "model-digest", "tokenizer-digest")


class Listener:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.welcomes: list[Welcome] = []
        self.messages: list[object] = []
        self.losses: list[str] = []
        self.refusals: list[str] = []

    def admit(self, welcome: Welcome) -> None: ...

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def connected(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)

    def received(self, message: object) -> None:
        self.messages.append(message)

    def lost(self, reason: str) -> None:
        self.losses.append(reason)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def make_link(
    secrets: DeploymentSecrets, listener: Listener
) -> AsyncIterator[Callable[..., ReplicaLink]]:
    made: list[ReplicaLink] = []

    def make(
        replica: Any, *, secrets: DeploymentSecrets = secrets, identity: Identity = IDENTITY, **config: Any
    ) -> ReplicaLink:
        info = replica.info()
        settings = {"reconnect_first_s": 0.01, "reconnect_most_s": 0.02, "refused_retry_s": 0.02, **config}
        deployment = Deployment(identity, secrets)
        link = ReplicaLink(info.host, info.port, RouterConfig(**settings), deployment, listener)
        link.start()
        made.append(link)
        return link

    yield make
    for link in made:
        await link.aclose()


async def test_connects_and_hears_the_snapshot(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    link = make_link(await make_replica(cache=[b"x" * 16]))
    await eventually(lambda: listener.messages != [])
    assert link.connected and link.detail == ""
    assert listener.messages == [SnapshotChunk(0, b"x" * 16, True)]
    assert listener.welcomes[0].replica_id == "a"


async def test_sends_small_messages_without_delay(
    make_replica: Make, make_link: Any, eventually: Make
) -> None:
    link = make_link(await make_replica())
    await eventually(lambda: link.connected)
    sock = link._writer.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_cut_connection_is_a_loss_and_is_made_again(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    link = make_link(replica)
    await eventually(lambda: replica.num_connections == 1 and link.connected)
    replica.cut()
    await eventually(lambda: replica.num_connections == 2 and link.connected)
    assert len(listener.losses) == 1 and len(listener.welcomes) == 2


async def test_half_a_frame_ends_the_connection(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    make_link(replica)
    await eventually(lambda: replica.writers != [])
    replica.send_raw(frame(encode(Pong(1)))[:-1])
    replica.writers[0].close()
    await eventually(lambda: listener.losses != [])
    assert "middle of a frame" in listener.losses[0]


@pytest.mark.parametrize("nonsense", [b"\xc1", encode([99]), encode([23, 1]), encode(Ping(1))])
async def test_a_message_that_does_not_decode_ends_the_connection(
    nonsense: bytes, make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    make_link(replica)
    await eventually(lambda: replica.writers != [])
    replica.send_raw(frame(nonsense))
    await eventually(lambda: listener.losses != [])


async def test_an_announced_frame_over_the_limit_ends_the_connection(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    make_link(replica)
    await eventually(lambda: replica.writers != [])
    replica.send_raw(b"\xff\xff\xff\xff")
    await eventually(lambda: listener.losses != [])
    assert "limit" in listener.losses[0]


async def test_a_replica_with_another_key_is_refused_and_the_reason_is_shown(
    secrets: DeploymentSecrets, make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    link = make_link(replica, secrets=replace(secrets, hello_key=b"other"))
    await eventually(lambda: len(replica.refusals) > 1)  # told why, and tried again
    assert "key" in link.detail and link.detail in listener.refusals
    assert not link.connected and listener.welcomes == []


async def test_a_replica_with_another_tokenizer_is_refused(
    make_replica: Make, make_link: Any, eventually: Make
) -> None:
    link = make_link(await make_replica(identity=replace(IDENTITY, tokenizer_digest="another")))
    await eventually(lambda: "tokenizer_digest differs" in link.detail)


async def test_a_replica_that_hashes_otherwise_is_refused(
    secrets: DeploymentSecrets, make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    other = replace(secrets, hash_secret=b"o" * SECRET_BYTES)
    link = make_link(await make_replica(), secrets=other)
    await eventually(lambda: "hash_fingerprint differs" in link.detail)
    assert listener.welcomes == []


async def test_a_replica_with_another_block_size_than_the_first_is_refused(
    make_replica: Make, make_link: Any, eventually: Make
) -> None:
    link = make_link(await make_replica(block_size=8), identity=replace(IDENTITY, block_size=4))
    await eventually(lambda: "block_size differs" in link.detail)


async def test_an_address_where_nobody_listens_is_tried_again(
    make_replica: Make, make_link: Any, eventually: Make
) -> None:
    replica = await make_replica()
    await replica.die()
    link = make_link(replica)
    await eventually(lambda: "refused" in link.detail.lower() or "connect" in link.detail.lower())
    assert not link.connected


async def test_a_peer_that_never_greets_is_given_up(
    listener: Listener, make_link: Any, eventually: Make
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    class Silent:
        @staticmethod
        def info() -> Any:
            return type("Address", (), {"host": host, "port": port})

    link = make_link(Silent, connect_timeout_s=0.05)
    await eventually(lambda: "in time" in link.detail)
    await link.aclose()
    server.close()


async def test_a_peer_that_answers_no_ping_is_lost(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica(answers_pings=False)
    make_link(replica, ping_interval_s=0.01, ping_timeout_s=0.05)
    await eventually(lambda: listener.losses != [])
    assert "ping" in listener.losses[0]


async def test_a_peer_that_answers_pings_stays(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    link = make_link(replica, ping_interval_s=0.005, ping_timeout_s=20.0)
    await eventually(lambda: link.connected)
    heard = [link._heard.is_set() for _ in range(20) if await asyncio.sleep(0.005) is None]
    assert any(heard) and listener.losses == []


async def test_a_peer_that_reads_slowly_is_cut_off_and_comes_back(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    link = make_link(replica, max_unsent_bytes=100_000)
    await eventually(lambda: replica.writers != [] and link.connected)
    replica.stop_reading()
    for _ in range(400):
        link.send(Touch(b"d" * 65_536))
    await eventually(lambda: len(listener.losses) == 1 and link.connected)
    assert "slowly" in listener.losses[0]


async def test_what_is_sent_without_a_connection_is_dropped(make_replica: Make, make_link: Any) -> None:
    replica = await make_replica()
    await replica.die()
    link = make_link(replica)
    link.send(Touch(b""))
    with pytest.raises(ReplicaLost):
        await link.reset_cache()


async def test_reset_answers_how_many_blocks_are_in_use(
    make_replica: Make, make_link: Any, eventually: Make
) -> None:
    link = make_link(await make_replica())
    await eventually(lambda: link.connected)
    assert await link.reset_cache() == 0


async def test_a_reset_ends_with_an_error_when_the_replica_dies(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    replica = await make_replica()
    link = make_link(replica)
    await eventually(lambda: link.connected and replica.writers != [])
    replica.stop_reading()
    asking = asyncio.create_task(link.reset_cache())
    await asyncio.sleep(0)
    replica.cut()
    with pytest.raises(ReplicaLost):
        await asking


async def test_a_closed_link_tells_its_loss_and_connects_no_more(
    make_replica: Make, make_link: Any, listener: Listener, eventually: Make
) -> None:
    link = make_link(await make_replica())
    await eventually(lambda: link.connected)
    await link.aclose()
    assert not link.connected and len(listener.losses) == 1
