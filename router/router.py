"""The core that routes one version of a model: holds a view per replica, opens generations.

Made and led by `models/model_version.py`, asked by the HTTP endpoint. Takes token ids and gives token ids: knows
nothing of HTTP or text, of other models, or of Ray.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from protocol.demand import RouterDemand
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import Draining, ReplicaLost
from protocol.membership import ReplicaInfo
from protocol.messages import Identity
from router.deployment import Deployment
from router.prefixes.prefix_index import PrefixIndex
from router.replicas.replica_view import ReplicaView
from router.requests.dispatcher import Dispatcher
from router.requests.generation import Generation
from router.requests.routed_request import RoutedRequest
from router.router_config import RouterConfig
from router.router_status import RouterCounters, RouterStatus
from router.routing.explanation import Explanation
from router.routing.prefill_board import PrefillBoard


class Router:
    """Lives in one event loop, from construction to `aclose`."""

    def __init__(
        self,
        config: RouterConfig,
        identity: Identity,
        secrets: DeploymentSecrets,
        *,
        counters: RouterCounters | None = None,
        changed: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`counters` may be shared with other cores. `changed` is called whenever `met` may have a new answer."""
        self.counters = counters or RouterCounters()
        self._config = config
        self._clock = clock
        self._changed = changed
        self._deployment = Deployment(identity, secrets)
        self._index = PrefixIndex(
            expectation_ttl_s=config.expectation_ttl_s, max_blocks_per_replica=config.max_indexed_blocks
        )
        self._board = PrefillBoard()
        self._views: dict[str, ReplicaView] = {}
        self._dispatcher = Dispatcher(
            config,
            self._deployment,
            self._index,
            self._board,
            self._views,
            self.counters,
            rng or random.Random(),
            clock,
        )
        self._membership_lock = asyncio.Lock()
        self._draining = False
        self._max_model_len: int | None = None
        self._num_requests = 0  # taken here, whatever the counters are shared with
        self._num_open = 0
        self._empty = asyncio.Event()  # set when the last open request leaves

    # Replicas

    async def set_replicas(self, replicas: Sequence[ReplicaInfo]) -> None:
        """Follow the controller's membership: what is new is connected to, what is gone is left."""
        async with self._membership_lock:
            named = {info.replica_id for info in replicas}
            for replica in [replica for replica in self._views if replica not in named]:
                await self._remove(replica)
            for info in replicas:
                view = self._views.get(info.replica_id) or self._add(info)
                await view.follow(info)

    def _add(self, info: ReplicaInfo) -> ReplicaView:
        view = ReplicaView(
            info,
            self._config,
            self._deployment,
            self._index,
            self._board,
            self._dispatcher,
            self._changed,
            self._clock,
        )
        self._views[info.replica_id] = view
        return view

    async def _remove(self, replica: str) -> None:
        view = self._views[replica]
        view.leaving = True  # it takes nothing more while its connection closes
        await view.aclose()
        del self._views[replica]

    async def drain_replica(self, replica_id: str, deadline_s: float) -> bool:
        """No new requests there from now on; live ones may end until the deadline, then they go on elsewhere.

        True once none is left, or there is no such replica. False: the controller named it ready again meanwhile.
        With nowhere to go, a request stays beyond the deadline, until it can move or has ended.
        """
        view = self._views.get(replica_id)
        return view is None or await view.drain(deadline_s)

    def met(self, replica_id: str, incarnation: int) -> str | None:
        """Empty: this incarnation is sent requests; a sentence: it will not be; None: that is not known yet."""
        view = self._views.get(replica_id)
        return None if view is None else view.met(incarnation)

    # Requests

    @asynccontextmanager
    async def open(self, request: RoutedRequest) -> AsyncIterator[Generation]:
        """Place the request, waiting for a ready replica if need be; cancel on leaving what has not finished.

        Raises Draining, Overloaded, NoReplica, DeadlineExceeded, or what the replica says of it.
        """
        if self._draining:
            raise Draining("the router takes no new requests: it is going down")
        generation = self._dispatcher.begin(request)
        self._num_requests += 1
        self._num_open += 1
        try:
            await generation.placed()
            yield generation
        finally:
            self._dispatcher.end(generation)
            self._num_open -= 1
            if not self._num_open:
                self._empty.set()

    def explain(self, request: RoutedRequest) -> Explanation:
        """Where the request would go now, and why. Nothing is sent, counted or remembered. Raises NoReplica."""
        return self._dispatcher.explain(request)

    async def reset_prefix_cache(self) -> int:
        """Blocks in use over all replicas; 0: every cache is empty now. A replica that dies meanwhile has none."""

        async def reset(view: ReplicaView) -> int:
            try:
                return await view.reset_cache()
            except ReplicaLost:
                return 0

        return sum(await asyncio.gather(*map(reset, self._views.values())))

    # State

    @property
    def ready(self) -> bool:
        """Some replica takes requests, and so does this router."""
        return not self._draining and any(view.accepting for view in self._views.values())

    @property
    def num_accepting(self) -> int:
        """Replicas that take new requests."""
        return sum(view.accepting for view in self._views.values())

    def drain(self) -> None:
        """No longer ready, and no new requests; those that run end."""
        self._draining = True

    def give_up(self) -> None:
        """Requests that are still open end with an error that says why."""
        self._dispatcher.fail_all(lambda: Draining("the router went down before the answer was complete"))

    async def idle(self) -> None:
        """Until no request is open."""
        while self._num_open:
            self._empty.clear()
            await self._empty.wait()

    def set_admission_timeout(self, timeout_s: float) -> None:
        """How long a request without a deadline waits for a replica; those that wait already wait as they were told."""
        self._dispatcher.set_admission_timeout(timeout_s)

    @property
    def block_size(self) -> int | None:
        hasher = self._deployment.hasher
        return None if hasher is None else hasher.block_size

    @property
    def max_model_len(self) -> int | None:
        """Of the replica with the shortest context; while none is connected, what it was."""
        lengths = [view.welcome.max_model_len for view in self._views.values() if view.welcome is not None]
        self._max_model_len = min(lengths, default=self._max_model_len)
        return self._max_model_len

    def demand(self, version: str = "") -> RouterDemand:
        """`version`: of the model that this core routes."""
        spent, sent = self._board.prefill_rates(self._clock())
        loads = ((view.replica_id, view.reported) for view in self._views.values())
        return RouterDemand(
            loads=tuple((replica, load) for replica, load in loads if load is not None),
            prefill_spent=spent,
            prefill_sent=sent,
            num_requests=self._num_requests,
            num_waiting=self._dispatcher.num_waiting,
            version=version,
        )

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        """How many blocks each replica alone holds; of one that is BLIND nothing is told."""
        return tuple((await self._index.own_blocks()).items())

    def status(self) -> RouterStatus:
        return RouterStatus(
            router_id=self._config.router_id,
            model=self._deployment.identity.model,
            ready=self.ready,
            draining=self._draining,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            num_live_requests=self._dispatcher.num_live,
            num_waiting_requests=self._dispatcher.num_waiting,
            replicas=tuple(view.status() for view in self._views.values()),
            num_queued_tokens=self._dispatcher.num_queued_tokens,
            max_queued_tokens=self._dispatcher.max_queued_tokens,
            num_index_bytes=self._index.num_bytes,
        )

    async def aclose(self) -> None:
        """Ends what still runs with an error, then every connection."""
        self.drain()
        self.give_up()
        async with self._membership_lock:
            for replica in list(self._views):
                await self._remove(replica)
        self._dispatcher.close()
