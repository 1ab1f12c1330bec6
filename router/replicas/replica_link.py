"""One multiplexed connection to one replica's rank 0: connects, greets, reads, pings, and connects again when lost.

Owned by `replica_view.py`, which it tells what happens through `LinkListener`. Knows frames and messages; nothing of
requests, the index or the policy. A lost connection is the replica's death for whatever ran over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from itertools import count
from typing import Protocol

from protocol.codec import decode, encode
from protocol.errors import ProtocolError, ReplicaLost
from protocol.frames import frame, read_frame
from protocol.handshake import HelloRefused, greet_replica
from protocol.messages import (
    CacheReset,
    Ping,
    Pong,
    Rejected,
    ResetCache,
    RouterMessage,
    SnapshotChunk,
    StepFrame,
    Welcome,
)
from router.deployment import Deployment
from router.router_config import RouterConfig

log = logging.getLogger(__name__)

ToListener = StepFrame | SnapshotChunk | Rejected


class LinkListener(Protocol):
    """Called in the order in which things happen; between `connected` and `lost` the link may be sent to."""

    def admit(self, welcome: Welcome) -> None: ...  # raises HelloRefused

    def connected(self, welcome: Welcome) -> None: ...

    def refused(self, reason: str) -> None: ...  # one side does not accept the other

    def received(self, message: ToListener) -> None: ...  # raises ProtocolError

    def lost(self, reason: str) -> None: ...


class ReplicaLink:
    """Runs from `start` to `aclose`, through any number of connections to one address."""

    def __init__(
        self, host: str, port: int, config: RouterConfig, deployment: Deployment, listener: LinkListener
    ) -> None:
        self._host = host
        self._port = port
        self._config = config
        self._deployment = deployment
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None  # set while connected
        self._cut_because: str | None = None
        self._heard = asyncio.Event()
        self._calls: dict[int, asyncio.Future[int]] = {}
        self._numbers = count(1)
        self.detail = "connecting"  # empty while connected

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def start(self) -> None:
        assert self._task is None, "a link starts once"
        self._task = asyncio.create_task(self._run(), name=f"link to {self._host}:{self._port}")

    async def aclose(self) -> None:
        """Ends the connection and never makes another. The listener hears of the loss, if there was one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def send(self, message: RouterMessage) -> None:
        """Queue one message; dropped when the connection is lost already. A peer too slow to take it is cut."""
        if self._writer is None or self._cut_because is not None:
            return
        self._writer.write(frame(encode(message)))
        if self._writer.transport.get_write_buffer_size() > self._config.max_unsent_bytes:
            self._cut(f"it reads too slowly: more than {self._config.max_unsent_bytes} bytes wait for it")

    async def reset_cache(self) -> int:
        """Blocks in use at the replica; 0: its cache is empty now. Raises ReplicaLost."""
        if not self.connected:
            raise ReplicaLost("the replica is not connected")
        number = next(self._numbers)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.send(ResetCache(number))
        try:
            return await answer
        finally:
            self._calls.pop(number, None)

    # One connection after the other

    async def _run(self) -> None:
        failures = 0
        while True:
            refused, began = False, time.monotonic()
            try:
                await self._connect()
            except HelloRefused as refusal:
                refused, self.detail = True, refusal.message
                self._listener.refused(refusal.message)
            except (OSError, TimeoutError, ProtocolError) as error:
                self.detail = self._cut_because or _sentence(error)
            lasted = time.monotonic() - began > self._config.reconnect_most_s
            failures = 0 if lasted else failures + 1  # one that is lost as soon as it stands is a failure too
            await asyncio.sleep(self._pause_s(failures, refused))

    def _pause_s(self, failures: int, refused: bool) -> float:
        if refused:
            return self._config.refused_retry_s
        doublings = max(0, min(failures - 1, 30))
        return min(self._config.reconnect_most_s, self._config.reconnect_first_s * 2.0**doublings)

    async def _connect(self) -> None:
        """One connection from its first packet to its last. Raises why it ended."""
        self._cut_because = None
        async with asyncio.timeout(self._config.connect_timeout_s):
            reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                welcome = await self._greet(reader, writer)
            await self._converse(reader, writer, welcome)
        finally:
            await _abort(writer)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Welcome:
        """Raises HelloRefused, ProtocolError."""
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deployment, router_id = self._deployment, self._config.router_id
        welcome = await greet_replica(reader, writer, deployment.hello_key, router_id, deployment.identity)
        self._listener.admit(welcome)
        deployment.admit(welcome)
        return welcome

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, welcome: Welcome
    ) -> None:
        """From the welcome to the connection's end. The listener hears `lost` however it ends."""
        self._writer, self.detail = writer, ""
        pinging = asyncio.create_task(self._ping())
        reason = "the router closes the connection"
        try:
            self._listener.connected(welcome)
            await self._read(reader)
            reason = self._cut_because or "the replica closed the connection"
            raise ProtocolError(reason)
        except (OSError, ProtocolError) as error:
            reason = self._cut_because or _sentence(error)
            raise
        except Exception as error:  # nonsense that decodes, or a fault of ours: the link survives both
            log.exception("the connection to %s:%s ends by a fault", self._host, self._port)
            reason = _sentence(error)
            raise ProtocolError(reason) from error
        finally:
            pinging.cancel()
            self._writer = None
            self._fail_calls(reason)
            self._listener.lost(reason)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (payload := await read_frame(reader)) is not None:
            self._heard.set()
            if self._cut_because is not None:
                return
            message = decode(payload)
            if isinstance(message, ToListener):
                self._listener.received(message)
            elif isinstance(message, CacheReset):
                self._answer(message)
            elif not isinstance(message, Pong):
                raise ProtocolError(f"the replica sent {type(message).__name__}")

    async def _ping(self) -> None:
        """A peer that stays silent after a ping is lost, though its socket may stand for minutes more."""
        for number in count(1):
            await asyncio.sleep(self._config.ping_interval_s)
            self._heard.clear()
            self.send(Ping(number))
            try:
                async with asyncio.timeout(self._config.ping_timeout_s):
                    await self._heard.wait()
            except TimeoutError:
                await asyncio.sleep(0)  # if this loop itself stood still, the answer is being read just now
                if not self._heard.is_set():
                    self._cut(f"it has not answered a ping for {self._config.ping_timeout_s:g} s")
                    return

    def _cut(self, reason: str) -> None:
        """End the connection now, unsent bytes and all; the reader notices and reports the loss."""
        self._cut_because = self._cut_because or reason
        if self._writer is not None:
            self._writer.transport.abort()

    def _answer(self, reset: CacheReset) -> None:
        call = self._calls.get(reset.call_id)
        if call is not None and not call.done():
            call.set_result(reset.blocks_in_use)

    def _fail_calls(self, reason: str) -> None:
        for call in self._calls.values():
            if not call.done():
                call.set_exception(ReplicaLost(f"the replica was lost: {reason}"))


async def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _sentence(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "it did not answer in time"
    return str(error) or type(error).__name__
