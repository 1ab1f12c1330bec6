"""Asks the routers about the demand now and then, and what it calls for. Owned by `controller.py`, which acts on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.autoscaling import Autoscaler, Need, need_of
from controller.config import DeploymentConfig
from controller.model_config import Autoscaling
from controller.unit import Router, Unit
from controller.wanted import served_model
from protocol.demand import RouterDemand
from protocol.membership import ReplicaState

INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Resizing:
    """Of one model's replicas, and why."""

    model: str
    before: int
    after: int
    need: Need

    def __str__(self) -> str:
        waits = self.need.is_waited_for and not self.before
        why = "a request waits" if waits else f"{self.need.replicas:.2f} would be busy all the time"
        return f"{self.model} scales from {self.before} to {self.after} replicas: {why}"


class DemandWatch:
    def __init__(self, units: Mapping[str, Unit], clock: Callable[[], float]) -> None:
        self._units = units
        self._clock = clock
        self._scalers: dict[str, Autoscaler] = {}
        self.due_s = 0.0  # when to look again, where replicas scale by themselves

    def ready_routers(self) -> list[Router]:
        ready = [unit.launched for unit in self._units.values() if unit.state is ReplicaState.READY]
        return [launched for launched in ready if isinstance(launched, Router)]

    async def look_at_caches(self) -> None:
        """Note of each replica how much only it has cached, by the word of the first router that answers."""
        for router in self.ready_routers():
            if answer := await router.own_blocks():
                for replica, num_blocks in answer:
                    if replica in self._units:
                        self._units[replica].num_own_blocks = num_blocks
                return

    async def decide(self, config: DeploymentConfig) -> list[Resizing]:
        """Of models that scale by themselves and should have another number of replicas than they have."""
        scaling = [(model, model.autoscaling) for model in config.models if model.autoscaling is not None]
        now_s = self._clock()
        if not scaling or now_s < self.due_s:
            return []
        self.due_s = now_s + INTERVAL_S
        demands = await self._ask()
        resizings = []
        for model, settings in scaling:
            version = served_model(model).version
            told = [each for each in demands if each.version == version]
            if not told:
                continue  # no router answers: that says nothing of the demand
            need = need_of(told, model.max_num_seqs)
            num_replicas = self._autoscaler(model.name, settings).decide(model.replicas, need, now_s)
            resizings.append(Resizing(model.name, model.replicas, num_replicas, need))
        return [each for each in resizings if each.before != each.after]

    async def _ask(self) -> list[RouterDemand]:
        answers = await asyncio.gather(*(router.demand() for router in self.ready_routers()))
        return [demand for answer in answers for demand in answer]

    def _autoscaler(self, model: str, settings: Autoscaling) -> Autoscaler:
        scaler = self._scalers.get(model)
        if scaler is None or scaler.settings != settings:
            scaler = self._scalers[model] = Autoscaler(settings, self._clock())
        return scaler
