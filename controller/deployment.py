"""A running deployment as its driver sees it: start, follow, stop. Holds nothing that must outlive the driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from controller.actor import ControllerActor
from controller.actor_calls import answer, detached
from controller.config import DeploymentConfig
from controller.launcher import Actors
from controller.names import CONTROLLER, NAMESPACE
from controller.state import RayStore
from controller.status import DeploymentStatus, Phase
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest, NoReplica, TrunklineError

RETRY_AFTER_S = 0.2  # while Ray restarts the controller


class Deployment:
    """Made by `launch` or `find`, on a Ray that is connected."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    @classmethod
    def launch(cls, config: DeploymentConfig, actors: Actors | None = None) -> Deployment:
        """Start a controller; it does the rest. Raises InvalidRequest when there is one already."""
        if cls.find() is not None:
            raise InvalidRequest(
                "a deployment is already running on this Ray: `trunkline upgrade` changes it, `trunkline stop` ends it"
            )
        RayStore().remove_now()  # of a deployment whose controller somebody killed for good
        # Of watchers and routers each has one call waiting, for as long as nothing changes.
        controller = detached(ControllerActor, CONTROLLER, max_restarts=-1, max_concurrency=1000)
        made = (
            DeploymentSecrets.generate()
            if config.secret is None
            else DeploymentSecrets.derived(config.secret)
        )
        return cls(controller.remote(config.model_copy(update={"secret": None}), made, actors or Actors()))

    @classmethod
    def find(cls) -> Deployment | None:
        try:
            return cls(ray.get_actor(CONTROLLER, NAMESPACE))
        except ValueError:
            return None

    async def statuses(self) -> AsyncIterator[DeploymentStatus]:
        """Every change from now on, until nothing runs any more. A controller that is away is waited for."""
        version: int | None = None
        while True:
            try:
                version, status = await answer(self._controller.status.remote(version))
            except RayActorError:
                if self.find() is None:
                    return
                version = None  # its successor counts anew
                await asyncio.sleep(RETRY_AFTER_S)
                continue
            yield status
            if status.phase is Phase.STOPPED:
                return

    async def scale(self, num_replicas: int, model: str | None = None) -> None:
        """Of a model, or of the only one. Raises InvalidRequest, as do the two below."""
        await self._ask("scale", num_replicas, model)

    async def drain(self, replica: str) -> None:
        """Returns when it is gone."""
        await self._ask("drain", replica)

    async def upgrade(self, config: DeploymentConfig) -> None:
        """Returns once it has begun; statuses tell how it goes."""
        await self._ask("upgrade", config)

    async def stop(self, grace_s: float) -> None:
        """Returns when all is gone. The call is enough: the controller goes on when its caller dies."""
        while (found := self.find()) is not None:
            try:
                await answer(found._controller.stop.remote(grace_s))
                return
            except RayActorError:
                await asyncio.sleep(RETRY_AFTER_S)  # it has left, or died: then its successor is asked again

    async def _ask(self, method: str, *arguments: object) -> None:
        """A controller that dies meanwhile is followed by another, which is asked again."""
        while (found := self.find()) is not None:
            try:
                await answer(getattr(found._controller, method).remote(*arguments))
                return
            except RayActorError:
                await asyncio.sleep(RETRY_AFTER_S)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, TrunklineError) else error from None
        raise NoReplica("the deployment has been stopped meanwhile")
