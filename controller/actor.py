"""The controller as a Ray actor: named, detached, restarted by Ray without end. Launched by `deployment.py`."""

from __future__ import annotations

import asyncio
import os

import ray

from controller.config import DeploymentConfig
from controller.controller import Controller
from controller.launcher import Actors, RayLauncher
from controller.log import log
from controller.names import CONTROLLER, NAMESPACE
from controller.state import DeploymentState, RayStore
from controller.status import DeploymentStatus
from protocol.deployment_secrets import DeploymentSecrets
from protocol.membership import Membership

RESTART_AFTER_S = 1.0  # Ray restarts a dead controller at once, without end
LEAVE_AFTER_S = 0.2  # so that whoever called `stop` gets its answer


class ControllerActor:
    """Its methods are coroutines, so Ray runs it on an event loop, the constructor included."""

    def __init__(self, config: DeploymentConfig, secrets: DeploymentSecrets, actors: Actors) -> None:
        def launcher(state: DeploymentState) -> RayLauncher:
            return RayLauncher(state.config, state.secrets, actors)

        self._controller = Controller(DeploymentState(config, secrets), launcher, RayStore())
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def membership(self, version: int | None) -> Membership:
        return await self._controller.membership(version)

    async def status(self, version: int | None) -> tuple[int, DeploymentStatus]:
        return await self._controller.status(version)

    async def stop(self, grace_s: float) -> None:
        await self._controller.stop(grace_s)

    async def scale(self, num_replicas: int, model: str | None) -> None:
        await self._controller.scale(num_replicas, model)

    async def drain(self, replica: str) -> None:
        await self._controller.drain(replica)

    async def upgrade(self, config: DeploymentConfig) -> None:
        await self._controller.upgrade(config)

    async def pid(self) -> int:
        return os.getpid()

    async def _live(self) -> None:
        try:
            await self._controller.run()
        except Exception:
            log.exception("the controller has failed; its successor adopts what runs")
            await asyncio.sleep(RESTART_AFTER_S)
            os._exit(1)
        await asyncio.sleep(LEAVE_AFTER_S)
        ray.kill(ray.get_actor(CONTROLLER, NAMESPACE))
