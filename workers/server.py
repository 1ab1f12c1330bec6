"""A replica's data plane: any number of routers on one port, each with its own framed stream. Runs on rank 0.

Two threads meet here. The step thread (`step_loop.py`) owns the engine, knows which router owns which request, and
builds each router's frame; the event loop reads messages and writes bytes, and does nothing that blocks. A router
first gets a snapshot of the cache, then every step's frame, so it can miss nothing in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

from protocol.codec import decode
from protocol.errors import ProtocolError
from protocol.frames import read_frame
from protocol.handshake import ReplicaFacts, greet_router
from protocol.messages import CacheReset, Cancel, Ping, Pong, ResetCache, Resync, Submit, Touch
from workers.engine import Engine
from workers.request_ledger import RequestLedger
from workers.router_connection import RouterConnection
from workers.step_loop import StepLoop


class ReplicaServer:
    """Owns the engine, its step thread and the listening socket. `async with` starts and ends all three."""

    def __init__(
        self,
        engine: Engine,
        key: bytes,
        facts: ReplicaFacts,
        host: str,
        on_death: Callable[[str], None] = lambda trace: None,
        hang_timeout_s: float | None = None,
    ) -> None:
        self._engine = engine
        self._key = key
        self._facts = facts
        self._host = host
        self._ledger = RequestLedger()
        self._on_death = on_death
        self._steps = StepLoop(engine, self._ledger.deliver, self._died, hang_timeout_s)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def connections(self) -> frozenset[asyncio.StreamWriter]:
        """Of the routers that are connected now."""
        return frozenset(self._writers)

    @property
    def stopping(self) -> bool:
        return self._steps.stopping

    async def __aenter__(self) -> ReplicaServer:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._steps.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, which their routers then place elsewhere, and let the running ones end."""
        loop, idle = asyncio.get_running_loop(), asyncio.Event()
        self._steps.post(partial(self._ledger.drain, partial(loop.call_soon_threadsafe, idle.set)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await idle.wait()

    async def aclose(self, timeout_s: float = 10.0) -> None:
        """Refuse, end the running step, cut the connections, free the engine."""
        assert self._server is not None, "the server was never started"
        self._server.close()
        ended = await asyncio.to_thread(self._steps.stop, timeout_s)
        self._cut_connections()
        if ended:  # else the step thread still uses it, and the process ends with it
            self._engine.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._converse(reader, writer)
        except (ProtocolError, ConnectionError, TimeoutError):
            pass  # the peer's fault or end: its connection closes, nobody else's does
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hello = await greet_router(reader, writer, self._key, self._facts)
        connection = RouterConnection(hello.router_id, writer, asyncio.get_running_loop())
        self._steps.post(partial(self._ledger.attach, connection))
        try:
            while (payload := await read_frame(reader)) is not None:
                self._dispatch(connection, decode(payload))
        finally:
            self._steps.post(partial(self._ledger.detach, connection))

    def _dispatch(self, connection: RouterConnection, message: object) -> None:
        """Hand a router's message to the step thread; only a ping is answered here."""
        match message:
            case Submit():
                self._steps.post(partial(self._ledger.submit, connection, message))
            case Cancel(request_id, index):
                self._steps.post(partial(self._ledger.cancel, request_id, index))
            case Touch(digests):
                self._steps.post(lambda engine: engine.touch(digests))
            case ResetCache(call_id):
                self._steps.post(lambda engine: _reset(engine, connection, call_id))
            case Resync():
                self._steps.post(partial(self._ledger.attach, connection))
            case Ping(number):
                connection.post(Pong(number))
            case _:
                raise ProtocolError(f"a router sent {type(message).__name__}")

    def _died(self, trace: str) -> None:
        """On the step thread: tell the owner, and let every router see at once that this replica is lost."""
        self._on_death(trace)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        """Nobody is greeted any more: a router that came back before the process ends would wait for steps in vain."""
        if self._server is not None:
            self._server.close()
        self._cut_connections()

    def _cut_connections(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


def _reset(engine: Engine, connection: RouterConnection, call_id: int) -> None:
    connection.post(CacheReset(call_id, engine.reset_prefix_cache()))
