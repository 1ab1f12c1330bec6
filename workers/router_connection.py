"""One router's stream as the replica sees it. `request_ledger.py` posts messages, `server.py` reads them."""

from __future__ import annotations

import asyncio
import contextlib

from protocol.codec import encode
from protocol.frames import frame
from protocol.messages import ReplicaMessage

MAX_BUFFERED_BYTES = (
    8 * 1024 * 1024
)  # a router that reads more slowly is cut off and comes back with a snapshot


class RouterConnection:
    """Only the event loop calls it, but for `post` and `allow`, which any thread may, and `num_submits`."""

    def __init__(self, router_id: str, writer: asyncio.StreamWriter, loop: asyncio.AbstractEventLoop) -> None:
        self.router_id = router_id
        self.num_submits = 0  # that the engine has taken or refused; the step thread's
        self._writer = writer
        self._loop = loop
        self._allowed_bytes = MAX_BUFFERED_BYTES

    def allow(self, num_bytes: int) -> None:
        """A snapshot of this size is coming: it may wait in the buffer beside everything else."""
        self._allowed_bytes = MAX_BUFFERED_BYTES + num_bytes

    def post(self, message: ReplicaMessage) -> None:
        """Encode here, write on the event loop. Order is kept."""
        payload = frame(encode(message))
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the connection
            self._loop.call_soon_threadsafe(self._write, payload)

    def _write(self, payload: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        self._writer.write(payload)
        if transport.get_write_buffer_size() > self._allowed_bytes:
            transport.abort()
