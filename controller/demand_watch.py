"""Asks the routers about the demand now and then, and what it calls for. Owned by `controller.py`, which acts on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from controller.autoscaling import Autoscaler, Need, need_of
from controller.config import Autoscaling, DeploymentConfig
from controller.unit import Router, Unit
from protocol.demand import RouterDemand
from protocol.membership import ReplicaState

INTERVAL_S = 2.0


class DemandWatch:
    def __init__(self, units: Mapping[str, Unit], clock: Callable[[], float]) -> None:
        self._units = units
        self._clock = clock
        self._scaler: Autoscaler | None = None
        self.due_s = 0.0  # when to look again, where replicas scale by themselves

    def ready_routers(self) -> list[Router]:
        ready = [unit.launched for unit in self._units.values() if unit.state is ReplicaState.READY]
        return [launched for launched in ready if isinstance(launched, Router)]

    async def ask(self) -> list[RouterDemand]:
        """What the routers say; of the replicas it is noted what they have cached."""
        answers = await asyncio.gather(*(router.demand() for router in self.ready_routers()))
        demands = [demand for demand in answers if demand is not None]
        for replica, load in dict(load for demand in demands for load in demand.loads).items():
            if replica in self._units:
                self._units[replica].num_cached_blocks = load.num_cached_blocks + load.num_used_blocks
        return demands

    async def decide(self, config: DeploymentConfig) -> tuple[int, Need] | None:
        """How many replicas there should be, and the need for them. None: not now, or not by itself."""
        settings, now_s = config.autoscaling, self._clock()
        if settings is None or now_s < self.due_s:
            return None
        self.due_s = now_s + INTERVAL_S
        need = need_of(await self.ask(), config.max_num_seqs)
        return self._autoscaler(settings).decide(config.replicas, need, now_s), need

    def _autoscaler(self, settings: Autoscaling) -> Autoscaler:
        if self._scaler is None or self._scaler.settings != settings:
            self._scaler = Autoscaler(settings, self._clock())
        return self._scaler
