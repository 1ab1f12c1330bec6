"""The reconcile loop: brings what runs to what is wanted, and tells routers and watchers what it is.

A plain class over two seams, `Launcher` (Ray) and `Store` (its memory). It may be killed at any moment: what it needs
is stored before it is done, and a new one adopts the units that are whole and ends the rest. `actor.py` wraps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from controller.changes import (
    condemns,
    drainable,
    finished,
    model_meant,
    resized,
    scaled,
    settled,
    taken_back,
    upgraded,
)
from controller.config import DeploymentConfig
from controller.demand_watch import DemandWatch
from controller.events import noted
from controller.log import log
from controller.picture import hopeless_detail, membership_of
from controller.published import Published
from controller.reconcile import Action, Plan, Verb, reconcile
from controller.state import DeploymentState, Store
from controller.status import DeploymentStatus, status_of
from controller.tending import Tending
from controller.unit import Launcher, Unit, UnitRecord
from controller.wanted import served_model, wanted_of
from protocol.membership import Event, Membership, ReplicaState

NODES_INTERVAL_S = 2.0


class Controller:
    def __init__(
        self,
        state: DeploymentState,
        launcher: Callable[[DeploymentState], Launcher],
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._make_launcher = launcher
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._nodes: tuple[str, ...] = ()  # looked at only where each is to have a router
        self._want(state)
        self._units: dict[str, Unit] = {}
        self._demand = DemandWatch(self._units, clock)
        self._wake = asyncio.Event()
        self._tending = Tending(
            clock, self._demand.ready_routers, self._became_ready, self._wake.set, self._note
        )
        self._saving = asyncio.Lock()
        self._adopted = asyncio.Event()
        self._stopped = asyncio.Event()
        self._members: Published[Membership] = Published()
        self._status: Published[DeploymentStatus] = Published()

    async def run(self) -> None:
        """Until everything has been stopped. An error that nobody expected ends it: its successor adopts."""
        async with asyncio.TaskGroup() as tasks:
            self._tending.begin(tasks)
            await self._adopt()
            while not (self._stopping and not self._units):
                self._wake.clear()
                await self._look_at_nodes()
                await self._follow_demand()
                await self._follow_upgrade()
                plan = self._plan()
                for action in plan.actions:
                    await self._apply(action)
                self._publish()
                if not plan.actions:
                    await self._await_change(plan.look_again_at_s)
        await self._store.remove()
        self._publish()
        self._stopped.set()

    # What it is asked

    async def membership(self, version: int | None) -> Membership:
        """As soon as it is another than the caller's version."""
        version, membership = await self._members.other_than(version)
        return replace(membership, version=version)

    async def status(self, version: int | None) -> tuple[int, DeploymentStatus]:
        return await self._status.other_than(version)

    async def stop(self, grace_s: float) -> None:
        """Drain, end everything, return when all is gone. It goes on without its caller; 0 also cuts a drain short."""
        await self._adopted.wait()  # what is stored until then is a former controller's
        if not self._stopping:
            state = replace(self._state, stop_grace_s=grace_s)
            await self._change(state, f"stops; running requests have {grace_s:g} s")
        if grace_s == 0:
            self._tending.hurry()
        await self._stopped.wait()

    async def scale(self, num_replicas: int, model: str | None = None) -> None:
        """So many replicas of a model, or of the only one, from now on. Raises InvalidRequest."""
        await self._adopted.wait()
        scaled(self._state, num_replicas, model)  # a mistake is one at once
        await self._demand.look_at_caches()  # who has cached least of its own is to go, and routers know
        meant = model_meant(self._state.config, model)
        state = scaled(self._state, num_replicas, model)
        await self._change(state, f"{meant.name} scales from {meant.replicas} to {num_replicas} replicas")

    async def drain(self, replica: str) -> None:
        """End it, its running requests first; another takes its place. Returns when it is gone.

        Raises InvalidRequest.
        """
        await self._adopted.wait()
        unit = drainable(self._state, self._units, replica)
        if unit.alive and unit.state is not ReplicaState.DRAINING:
            self._drain(unit)
            await self._save()
            self._wake.set()
        if unit.task is not None:
            await asyncio.wait([unit.task])

    async def upgrade(self, config: DeploymentConfig) -> None:
        """Replace, one by one, whatever was launched otherwise. Returns at once; `status` tells how it goes.

        When a unit of the new configuration cannot start, all is taken back. Raises InvalidRequest.
        """
        await self._adopted.wait()
        await self._change(upgraded(self._state, config), "an upgrade begins")

    # Wanted

    @property
    def _stopping(self) -> bool:
        return self._state.stop_grace_s is not None

    def _want(self, state: DeploymentState) -> None:
        self._state = state
        self._launcher = self._make_launcher(state)
        self._wanted = wanted_of(state.config, self._nodes)

    async def _look_at_nodes(self) -> None:
        """Each is to have its router, where one a node is wanted."""
        if not self._state.config.routers.per_node:
            return
        nodes = await self._launcher.nodes()
        if nodes != self._nodes:
            self._nodes = nodes
            self._want(self._state)

    async def _follow_demand(self) -> None:
        """Where replicas scale by themselves: as many as the demand calls for. Not amid an upgrade."""
        before = self._state.config
        if self._stopping or self._state.previous or not (resizings := await self._demand.decide(before)):
            return
        if any(each.after < each.before for each in resizings):
            await self._demand.look_at_caches()
        if self._state.config is before:  # nobody has asked for something else meanwhile
            sizes = {each.model: each.after for each in resizings}
            await self._change(resized(self._state, sizes), "; ".join(map(str, resizings)))

    async def _change(self, state: DeploymentState, text: str) -> None:
        """Another wanted state, stored before anything is done for it."""
        self._want(state)
        for unit in self._units.values():
            if not unit.alive and unit.revision != self._revision_of(unit):
                unit.forgive()
        self._note("", text)
        await self._save()
        self._publish()  # whoever asked for it sees it from now on
        self._wake.set()

    async def _follow_upgrade(self) -> None:
        """One that is through is over; one whose units cannot start is taken back."""
        if self._state.previous is None or self._stopping:
            return
        units = self._units.values()
        failed = next((unit for unit in units if condemns(unit, self._revision_of(unit))), None)
        if failed is not None:
            reason = f"{failed.name}: {failed.detail}"
            await self._change(taken_back(self._state, reason), f"the upgrade is taken back: {reason}")
        elif settled(self._wanted, [unit.observed() for unit in units]):
            await self._change(finished(self._state), "the upgrade is through")

    def _revision_of(self, unit: Unit) -> str:
        return self._wanted.revision_of(unit.model)

    # From wanted to actual

    async def _adopt(self) -> None:
        """Take over a former controller's units, where there was one, and end what is left over."""
        known = await self._store.load()
        if known is not None:
            self._want(known)
        records = self._state.units
        for record in records:
            await self._adopt_unit(record)
        for record in records:
            if record.draining and self._units[record.unit].alive:
                self._drain(self._units[record.unit])  # only now are all routers known that it must ask
        await self._launcher.sweep([unit.record() for unit in self._units.values() if unit.alive])
        await self._save()
        self._adopted.set()

    async def _adopt_unit(self, record: UnitRecord) -> None:
        unit = Unit(record.unit, record.serves, record.incarnation, record.revision)
        self._units[record.unit] = unit
        if record.facts is None:
            return
        launched = await self._launcher.adopt(record, record.facts)
        if launched is None:
            return
        log.info("adopts %s.%d", unit.name, unit.incarnation)
        unit.state, unit.facts = ReplicaState.READY, record.facts
        self._tending.tend(unit, launched, record.facts)

    def _plan(self) -> Plan:
        observed = [unit.observed() for unit in self._units.values()]
        return reconcile(self._wanted, observed, self._clock(), self._stopping)

    async def _apply(self, action: Action) -> None:
        if action.verb is Verb.FORGET:
            gone = self._units.pop(action.unit)
            self._state = replace(self._state, retired={**self._state.retired, gone.name: gone.incarnation})
        elif action.verb is Verb.DRAIN:
            self._drain(self._units[action.unit])
        elif (
            not action.model or self._wanted.find(action.model) is not None
        ):  # an upgrade may have come meanwhile
            await self._start(self._units.get(action.unit) or self._new(action.unit), action.model)

    def _new(self, name: str) -> Unit:
        """Its incarnations count on where a former unit of this name stopped: nothing old is taken for new."""
        unit = self._units[name] = Unit(name, incarnation=self._state.retired.get(name, 0))
        return unit

    async def _start(self, unit: Unit, model: str) -> None:
        asked_for = self._state.config.find(model)
        unit.serves = None if asked_for is None else served_model(asked_for)
        if unit.revision != self._revision_of(unit):
            unit.forgive()
        unit.incarnation, unit.revision = unit.incarnation + 1, self._revision_of(unit)
        unit.state, unit.facts, unit.ready_at_s = ReplicaState.STARTING, None, None
        unit.accepted, unit.num_own_blocks = False, 0
        await self._save()
        log.info("starts %s.%d", unit.name, unit.incarnation)
        self._tending.tend(unit, self._launcher.launch(unit.name, unit.incarnation, model), None)

    def _drain(self, unit: Unit) -> None:
        stop_grace_s = self._state.stop_grace_s
        grace_s = self._state.config.drain_timeout_s if stop_grace_s is None else stop_grace_s
        self._note(unit.name, "drains")
        self._tending.drain(unit, grace_s)

    async def _became_ready(self, unit: Unit) -> None:
        self._note(unit.name, "is ready")
        await self._save()
        self._wake.set()

    # What others see

    def _note(self, unit: str, text: str) -> None:
        log.info("%s", f"{unit} {text}".strip())
        self._state = replace(
            self._state, events=noted(self._state.events, Event(self._wall_clock(), unit, text))
        )

    def _publish(self) -> None:
        """Nothing before all has been adopted: an empty membership would cut every router off."""
        units = [self._units[name] for name in sorted(self._units)]
        membership = membership_of(self._state, units)
        self._members.publish(membership)
        self._status.publish(status_of(membership, hopeless_detail(units), self._stopping))

    async def _await_change(self, look_again_at_s: float | None) -> None:
        """Ray tells nobody when nodes come and go, nor is demand an event: what matters is asked for again soon."""
        times_s = [] if look_again_at_s is None else [look_again_at_s]
        if self._state.config.routers.per_node:
            times_s.append(self._clock() + NODES_INTERVAL_S)
        if any(model.autoscaling is not None for model in self._state.config.models):
            times_s.append(self._demand.due_s)
        wait_s = max(0.0, min(times_s) - self._clock()) if times_s else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    async def _save(self) -> None:
        """One at a time, and each what is true when its turn has come: no older state is ever stored last."""
        async with self._saving:
            units = tuple(unit.record() for unit in self._units.values())
            self._state = replace(self._state, units=units)
            await self._store.save(self._state)
