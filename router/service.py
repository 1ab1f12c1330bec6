"""One router whole: its models, its HTTP endpoint, and the membership that it follows. `actor.py` runs it.

The HTTP stack is imported when it runs and not before: the controller imports this file too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from protocol import __version__
from protocol.demand import RouterDemand
from protocol.errors import Draining
from protocol.membership import Membership
from router.http.auth import check_bind
from router.launch import RouterLaunch

if TYPE_CHECKING:
    from router.http.catalog import Catalog
    from router.http.http_server import HttpServer
    from router.models.served_models import ServedModels

T = TypeVar("T")
LAST_WORDS_S = 1.0  # for telling those who are still there at the end of a drain
CLOSE_GRACE_S = 1.0  # for connections when nothing was drained
MEET_TIMEOUT_S = (
    600.0  # a controller that has long given up cannot end the call, and it takes one of the actor's threads
)


class RouterService:
    """`run` on a loop of its own; everything else may be called from any thread."""

    def __init__(self, launch: RouterLaunch, memberships: AsyncIterator[Membership]) -> None:
        check_bind(launch.host, launch.api_keys, anybody=launch.no_api_key)
        self.address: Future[tuple[str, int]] = Future()  # of the listening socket
        self._launch = launch
        self._memberships = memberships
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave = asyncio.Event()
        self._served: ServedModels | None = None
        self._server: HttpServer | None = None

    async def run(self) -> None:
        """Serve until `close`. Raises what made it impossible."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._serve()
        except BaseException as error:
            if not self.address.done():
                self.address.set_exception(error)
            raise
        if not self.address.done():
            self.address.set_exception(Draining("the router was closed before it listened"))

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the service's own loop do something."""
        self.address.result()
        assert self._loop is not None, "a service that listens has a loop"
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def drain(self, grace_s: float) -> None:
        """Readiness goes, then new requests, then the running ones end; or the time is over, and they are told so."""
        assert self._server is not None and self._loop is not None, "drained before it listens"
        self._models.drain()
        giving_up = self._loop.call_later(grace_s, self._models.give_up)
        try:
            await self._server.aclose(grace_s + LAST_WORDS_S)
        finally:
            giving_up.cancel()

    async def drain_replica(self, replica_id: str, deadline_s: float) -> bool:
        """See `Router.drain_replica`."""
        return await self._models.drain_replica(replica_id, deadline_s)

    async def meet(self, replica_id: str, incarnation: int, timeout_s: float = MEET_TIMEOUT_S) -> str:
        """See `ServedModels.meet`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._models.meet(replica_id, incarnation)
        except TimeoutError:
            return f"it could not be reached in {timeout_s:g} s"

    async def demand(self) -> tuple[RouterDemand, ...]:
        """Of every version of every model."""
        return self._models.demand()

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        """See `ServedModels.own_blocks`."""
        return await self._models.own_blocks()

    def close(self) -> None:
        """End `run`; what still runs is cut off. A second call does nothing."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._leave.set)

    @property
    def _models(self) -> ServedModels:
        assert self._served is not None, "a service that listens has models"
        return self._served

    async def _serve(self) -> None:
        from router.http.catalog import Catalog
        from router.models.served_models import ServedModels

        catalog = Catalog(self._launch.router_id)
        self._served = ServedModels(self._launch.router_id, self._launch.secrets, catalog)
        parts = (self._follow(self._served), self._answer(self._served, catalog), self._leave.wait())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._server is not None:
                await self.drain(CLOSE_GRACE_S)
            await self._served.aclose()

    async def _follow(self, models: ServedModels) -> None:
        async for membership in self._memberships:
            await models.follow(membership)

    async def _answer(self, models: ServedModels, catalog: Catalog) -> None:
        """Once there is something to ask for."""
        await models.begun()
        self._server = self._http_server(catalog)
        await self._server.__aenter__()
        self.address.set_result((self._launch.host, self._server.port))
        await self._leave.wait()

    def _http_server(self, catalog: Catalog) -> HttpServer:
        from router.http.api import create_app
        from router.http.api_config import ApiConfig
        from router.http.http_server import HttpServer

        launch = self._launch
        config = ApiConfig(version=__version__, api_keys=launch.api_keys, secrets=launch.secrets)
        return HttpServer(create_app(catalog, config), launch.host, launch.port)
