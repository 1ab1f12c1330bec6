"""The router as a Ray actor: the only file of `router` that knows Ray. Launched by `controller/`.

Ray carries the membership and the controller's calls; requests and tokens pass through `service.py` alone, on a thread
and an event loop that Ray does not share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray
import uvloop
from ray.exceptions import RayError

from protocol.demand import RouterDemand
from protocol.membership import Membership, WorkerInfo
from router.collection import settle
from router.launch import RouterLaunch
from router.service import RouterService

log = logging.getLogger("router")
RETRY_AFTER_S = 0.5  # while there is no controller to ask; the last membership stays in force


class RouterActor:
    """`address` returns once it listens, `run` when it has ended; each may be called before the other is done."""

    def __init__(self, launch: RouterLaunch) -> None:
        if launch.host == "node":
            host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            launch = replace(launch, host=host)
        self._service = RouterService(launch, memberships(launch.namespace, launch.controller))
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, name="router", daemon=True)
        self._thread.start()

    def info(self) -> WorkerInfo:
        return WorkerInfo(0, os.getpid(), ray.get_runtime_context().get_node_id())

    def address(self) -> tuple[str, int]:
        return self._service.address.result()

    def run(self) -> None:
        """The sentinel: raises what ended the router, if something did."""
        self._ended.result()

    def drain(self, grace_s: float) -> None:
        """Readiness goes, then new requests, then the running ones end or the time is over."""
        self._service.call(self._service.drain(grace_s)).result()

    def drain_replica(self, replica_id: str, deadline_s: float) -> bool:
        """No new requests there; True once none is left, False when it was named ready again meanwhile.

        Live ones may end until the deadline, then they go on elsewhere, or stay for as long as there is nowhere to go.
        Calling again joins the drain that goes on, and may shorten its deadline.
        """
        return self._service.call(self._service.drain_replica(replica_id, deadline_s)).result()

    def meet(self, replica_id: str, incarnation: int) -> str:
        """Returns once requests are sent to this incarnation: empty. Or once it is known that none will be: why.

        May be called before the membership names it.
        """
        return self._service.call(self._service.meet(replica_id, incarnation)).result()

    def demand(self) -> tuple[RouterDemand, ...]:
        """Of every version of every model."""
        return self._service.call(self._service.demand()).result()

    def own_blocks(self) -> tuple[tuple[str, int], ...]:
        """How many blocks each replica alone holds, of all that serve its version; nothing of one that is BLIND."""
        return self._service.call(self._service.own_blocks()).result()

    def close(self) -> None:
        self._service.close()
        self._thread.join()

    def _serve(self) -> None:
        self._service.address.add_done_callback(lambda _: settle())
        try:
            uvloop.run(self._service.run())
            self._ended.set_result(None)
        except BaseException as error:
            log.exception("the router has failed")
            self._ended.set_exception(error)


async def memberships(namespace: str, controller: str) -> AsyncIterator[Membership]:
    """Every membership of the deployment, by long poll; a controller that is away is waited for."""
    version: int | None = None
    while True:
        try:
            actor: Any = await asyncio.to_thread(ray.get_actor, controller, namespace)
            while True:
                reference = actor.membership.remote(version)
                membership: Membership = await asyncio.wrap_future(reference.future())
                version = membership.version
                yield membership
        except (RayError, ValueError) as error:
            log.warning("the controller does not answer (%s); asks again", type(error).__name__)
            version = None  # its successor counts anew
            await asyncio.sleep(RETRY_AFTER_S)
