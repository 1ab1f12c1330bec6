"""One incarnation of a router on Ray: a single actor without a placement group, beside the controller's loop.

Implements `Router` for `controller.py`. It needs no CPU of its own in Ray's books: it must start on a full node.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from controller.actor_calls import ADOPT_TIMEOUT_S, answer, detached
from controller.deaths import explain, start_failed
from controller.log import log
from controller.names import NAMESPACE, ActorName
from controller.processes import end_everywhere
from controller.unit import Tell, UnitFacts
from protocol.demand import RouterDemand
from protocol.membership import WorkerInfo
from router.launch import RouterLaunch

CLOSE_TIMEOUT_S = 5.0
RETRY_AFTER_S = 0.1
ANSWER_TIMEOUT_S = 2.0


class RouterProcess:
    def __init__(
        self, name: ActorName, launch: RouterLaunch, router_class: type, placed: Callable[[], object]
    ) -> None:
        self._name = name
        self._launch = launch
        self._class = router_class
        self._placed = placed  # Ray's scheduling strategy, asked for at the start
        self._actor: Any = None
        self._info: WorkerInfo | None = None

    async def start(self, tell: Tell) -> UnitFacts:
        tell("starts its process")
        await asyncio.to_thread(self._create)
        assert self._actor is not None, "no actor was made"
        try:
            self._info = await answer(self._actor.info.remote())
            host, port = await answer(self._actor.address.remote())
        except RayError as error:
            raise start_failed(self._name.unit, error) from None
        log.info("%s listens at %s:%d", self._name, host, port)
        return UnitFacts(host, port, (self._info,))

    async def adopt(self, facts: UnitFacts) -> bool:
        try:
            self._actor = await asyncio.to_thread(ray.get_actor, str(self._name), NAMESPACE)
            async with asyncio.timeout(ADOPT_TIMEOUT_S):
                self._info = await answer(self._actor.info.remote())
        except (ValueError, TimeoutError, RayError):
            return False
        return (self._info,) == facts.workers

    async def watch(self) -> str:
        assert self._actor is not None, "watched before it was started"
        try:
            await answer(self._actor.run.remote())
        except RayError as error:
            return explain(self._name.unit, error)
        return explain(self._name.unit, None)

    async def drain(self, grace_s: float) -> None:
        assert self._actor is not None, "drained before it was started"
        with contextlib.suppress(TimeoutError, RayError):
            async with asyncio.timeout(grace_s + CLOSE_TIMEOUT_S):
                await answer(self._actor.drain.remote(grace_s))
                await answer(self._actor.close.remote())

    async def demand(self) -> tuple[RouterDemand, ...]:
        told: tuple[RouterDemand, ...] | None = await self._ask("demand")
        return told or ()

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        told: tuple[tuple[str, int], ...] | None = await self._ask("own_blocks")
        return told or ()

    async def meet(self, replica: str, incarnation: int) -> str:
        """A router that dies meanwhile has nothing against it."""
        assert self._actor is not None, "asked before it was started"
        with contextlib.suppress(RayError):
            refusal: str = await answer(self._actor.meet.remote(replica, incarnation))
            return refusal
        return ""

    async def vacate(self, replica: str, grace_s: float) -> None:
        """A router that dies meanwhile has nothing there any more."""
        assert self._actor is not None, "asked before it was started"
        with contextlib.suppress(RayError):
            while not await answer(self._actor.drain_replica.remote(replica, grace_s)):
                await asyncio.sleep(RETRY_AFTER_S)  # it has not heard yet that the replica drains

    async def kill(self) -> None:
        if self._actor is None:
            return
        await asyncio.to_thread(ray.kill, self._actor)
        await end_everywhere(() if self._info is None else (self._info,))

    async def _ask(self, method: str) -> Any:
        """None: it does not answer."""
        assert self._actor is not None, "asked before it was started"
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer(getattr(self._actor, method).remote())
        except (TimeoutError, RayError):
            return None

    def _create(self) -> None:
        actor = detached(self._class, str(self._name), scheduling_strategy=self._placed())
        self._actor = actor.remote(self._launch)
