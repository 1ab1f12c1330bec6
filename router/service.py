"""One router whole: core, tokenizer, HTTP endpoint, and the membership that it follows. `actor.py` runs it.

The HTTP stack is imported when it runs and not before: the controller imports this file too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from protocol import __version__
from protocol.block_hash import ALGORITHM
from protocol.demand import RouterDemand
from protocol.membership import Membership
from protocol.messages import Identity
from protocol.model_source import ModelSource, resolve_model
from router.http.auth import check_bind
from router.launch import RouterLaunch

if TYPE_CHECKING:
    from router.http.http_server import HttpServer
    from router.router import Router

T = TypeVar("T")
CLOSE_GRACE_S = 1.0  # for connections when nothing was drained


class RouterService:
    """`run` on a loop of its own; everything else may be called from any thread."""

    def __init__(self, launch: RouterLaunch, memberships: AsyncIterator[Membership]) -> None:
        check_bind(launch.host, launch.api_keys, anybody=launch.no_api_key)
        self.address: Future[tuple[str, int]] = Future()  # of the listening socket
        self._launch = launch
        self._memberships = memberships
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave = asyncio.Event()
        self._router: Router | None = None
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

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the service's own loop do something."""
        self.address.result()
        assert self._loop is not None, "a service that listens has a loop"
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def drain(self, grace_s: float) -> None:
        """Readiness goes, then new requests, then the running ones end or the time is over."""
        assert self._router is not None and self._server is not None, "drained before it listens"
        self._router.drain()
        await self._server.aclose(grace_s)

    async def drain_replica(self, replica_id: str, deadline_s: float) -> bool:
        """See `Router.drain_replica`."""
        assert self._router is not None, "a service that listens has a router"
        return await self._router.drain_replica(replica_id, deadline_s)

    async def demand(self) -> RouterDemand:
        assert self._router is not None, "a service that listens has a router"
        return self._router.demand()

    def close(self) -> None:
        """End `run`; what still runs is cut off. A second call does nothing."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._leave.set)

    async def _serve(self) -> None:
        from router.router import Router
        from router.router_config import RouterConfig

        source = await asyncio.to_thread(self._source)
        identity = Identity(
            source.name,
            source.model_digest,
            source.tokenizer_digest,
            hash_algorithm=ALGORITHM,
            template_digest=source.template_digest,
        )
        config = RouterConfig(self._launch.router_id, admission_timeout_s=self._launch.admission_timeout_s)
        self._router = Router(config, identity, self._launch.secrets)
        following = asyncio.create_task(self._follow(self._router))
        try:
            self._server = await self._listen(self._router, source)
            leaving = asyncio.create_task(self._leave.wait())
            await asyncio.wait([leaving, following], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            if self._server is not None:
                await self.drain(CLOSE_GRACE_S)
            await self._router.aclose()

    def _source(self) -> ModelSource:
        return resolve_model(self._launch.model, served_name=self._launch.served_model_name)

    async def _follow(self, router: Router) -> None:
        async for membership in self._memberships:
            await router.follow(membership)

    async def _listen(self, router: Router, source: ModelSource) -> HttpServer:
        from router.http.api import create_app
        from router.http.api_config import ApiConfig
        from router.http.http_server import HttpServer
        from router.http.request_sampling import SamplingDefaults
        from router.text.tokenizer import Tokenizer

        tokenizer = await asyncio.to_thread(Tokenizer.from_directory, source.directory)
        config = ApiConfig(
            source.name,
            version=__version__,
            api_keys=self._launch.api_keys,
            secrets=self._launch.secrets,
            defaults=SamplingDefaults.from_directory(source.directory),
        )
        app = create_app(router, tokenizer, config)
        server = HttpServer(app, self._launch.host, self._launch.port)
        await server.__aenter__()
        self.address.set_result((self._launch.host, server.port))
        return server
