"""The data plane's event loop on a thread of its own, beside the step thread. Owned by `worker.py`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

import uvloop

from protocol.handshake import ReplicaFacts
from workers.engine import Engine
from workers.server import ReplicaServer

END_TIMEOUT_S = 2.0  # for the last step and the connections, once drained


class ServerThread:
    """Listens once constructed; `close` drains, then ends the loop, the step thread and the engine."""

    def __init__(
        self,
        engine: Engine,
        key: bytes,
        facts: ReplicaFacts,
        host: str,
        on_death: Callable[[str], None],
        hang_timeout_s: float | None = None,
    ) -> None:
        self._started: Future[int] = Future()
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._grace_s = 0.0
        self._thread = threading.Thread(
            target=self._run,
            args=(ReplicaServer(engine, key, facts, host, on_death, hang_timeout_s),),
            name="data-plane",
            daemon=True,
        )
        self._thread.start()
        self.port = self._started.result()

    def close(self, grace_s: float) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._grace_s = grace_s
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(grace_s + END_TIMEOUT_S)

    def _run(self, server: ReplicaServer) -> None:
        try:
            uvloop.run(self._serve(server))
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)

    async def _serve(self, server: ReplicaServer) -> None:
        self._loop = asyncio.get_running_loop()
        async with server:
            self._started.set_result(server.port)
            await self._stop.wait()
            await server.drain(self._grace_s)
