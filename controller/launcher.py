"""Makes a deployment's units on Ray, finds those of a former controller, and ends what nobody claims.

Implements `Launcher` for `controller.py`. `Actors` names the classes that Ray wraps, so that tests launch others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from controller.config import DeploymentConfig
from controller.log import log
from controller.model_config import ModelConfig
from controller.names import (
    GROUP_PREFIX,
    NAMESPACE,
    ActorName,
    group_name,
    is_router,
    parse_actor_name,
    router_on,
)
from controller.placement import release, stray_groups
from controller.replica_group import ReplicaGroup
from controller.router_process import RouterProcess
from controller.unit import Launched, StartFailed, UnitFacts, UnitRecord
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

    def launch(self, unit: str, incarnation: int, model: str) -> Launched:
        return self._make(unit, incarnation, self._config.find(model))

    async def adopt(self, record: UnitRecord, facts: UnitFacts) -> Launched | None:
        made = self._make(record.unit, record.incarnation)
        return made if await made.adopt(facts) else None

    async def nodes(self) -> tuple[str, ...]:
        return tuple(sorted(await asyncio.to_thread(living_nodes)))

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

    def _make(
        self, unit: str, incarnation: int, model: ModelConfig | None = None
    ) -> ReplicaGroup | RouterProcess:
        if is_router(unit):
            launch = router_launch(unit, self._config, self._secrets)
            placed = self._on_node(unit) if self._config.routers.per_node else lambda: "SPREAD"
            return RouterProcess(ActorName(unit, incarnation), launch, self._actors.router, placed)
        limit_s = self._config.silent_after_s
        return ReplicaGroup(unit, incarnation, model, self._secrets, self._actors.worker, limit_s)

    @staticmethod
    def _on_node(unit: str) -> Callable[[], NodeAffinitySchedulingStrategy]:
        """Where the router of a node goes, asked off the event loop. Raises StartFailed when the node has gone."""

        def placed() -> NodeAffinitySchedulingStrategy:
            node = next((each for each in living_nodes() if router_on(each) == unit), None)
            if node is None:
                raise StartFailed("its node has gone")
            return NodeAffinitySchedulingStrategy(node, soft=False)

        return placed


def living_nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def router_launch(unit: str, config: DeploymentConfig, secrets: DeploymentSecrets) -> RouterLaunch:
    routers = config.routers
    return RouterLaunch(
        router_id=unit,
        host=routers.host,
        port=routers.port if routers.per_node else routers.port_of(int(unit.rpartition("-")[2])),
        api_keys=config.api_keys,
        no_api_key=config.no_api_key,
        secrets=secrets,
    )
