"""Makes a deployment's units on Ray, finds those of a former controller, and ends what nobody claims.

Implements `Launcher` for `controller.py`. `Actors` names the classes that Ray wraps, so that tests launch others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from controller.config import DeploymentConfig
from controller.log import log
from controller.names import GROUP_PREFIX, NAMESPACE, ActorName, group_name, is_router, parse_actor_name
from controller.placement import release, stray_groups
from controller.replica_group import ReplicaGroup
from controller.router_process import RouterProcess
from controller.unit import Launched, UnitFacts, UnitRecord
from protocol.deployment_secrets import DeploymentSecrets
from router.actor import RouterActor
from router.launch import RouterLaunch
from workers.actor import WorkerActor


@dataclass(frozen=True, slots=True)
class Actors:
    worker: type = WorkerActor
    router: type = RouterActor


class RayLauncher:
    def __init__(self, config: DeploymentConfig, secrets: DeploymentSecrets, actors: Actors) -> None:
        self._config = config
        self._secrets = secrets
        self._actors = actors

    def launch(self, unit: str, incarnation: int) -> Launched:
        return self._make(unit, incarnation)

    async def adopt(self, unit: str, incarnation: int, facts: UnitFacts) -> Launched | None:
        made = self._make(unit, incarnation)
        return made if await made.adopt(facts) else None

    async def sweep(self, keep: Sequence[UnitRecord]) -> None:
        kept = {(record.unit, record.incarnation) for record in keep}
        for name in await asyncio.to_thread(ray.util.list_named_actors):
            found = parse_actor_name(name)
            if found is not None and (found.unit, found.incarnation) not in kept:
                log.info("ends %s, which nobody claims", name)
                with contextlib.suppress(ValueError):
                    ray.kill(ray.get_actor(name, NAMESPACE))
        groups = {group_name(record.unit, record.incarnation) for record in keep}
        for group in await asyncio.to_thread(stray_groups, GROUP_PREFIX, groups):
            await release(group)

    def _make(self, unit: str, incarnation: int) -> ReplicaGroup | RouterProcess:
        if is_router(unit):
            launch = router_launch(unit, self._config, self._secrets)
            return RouterProcess(ActorName(unit, incarnation), launch, self._actors.router)
        return ReplicaGroup(unit, incarnation, self._config, self._secrets, self._actors.worker)


def router_launch(unit: str, config: DeploymentConfig, secrets: DeploymentSecrets) -> RouterLaunch:
    index = int(unit.rpartition("-")[2])
    return RouterLaunch(
        router_id=unit,
        model=config.model,
        served_model_name=config.served_model_name,
        host=config.routers.host,
        port=config.routers.port_of(index),
        api_keys=config.api_keys,
        secrets=secrets,
    )
