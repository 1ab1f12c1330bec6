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
from functools import partial

from controller.log import log
from controller.names import is_router, replica_name, router_name
from controller.published import Published
from controller.reconcile import Action, Plan, Verb, failures_in_a_row, reconcile
from controller.state import DeploymentState, Store
from controller.status import DeploymentStatus, status_of
from controller.unit import Launched, Launcher, StartFailed, Unit, UnitFacts
from protocol.membership import Membership, ReplicaInfo, ReplicaState


class Controller:
    def __init__(
        self,
        state: DeploymentState,
        launcher: Callable[[DeploymentState], Launcher],
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._make_launcher = launcher
        self._store = store
        self._clock = clock
        self._launcher = launcher(state)
        self._units: dict[str, Unit] = {}
        self._tasks: asyncio.TaskGroup
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._adopted = asyncio.Event()
        self._stopped = asyncio.Event()
        self._replicas: Published[tuple[ReplicaInfo, ...]] = Published()
        self._status: Published[DeploymentStatus] = Published()

    async def run(self) -> None:
        """Until everything has been stopped. An error that nobody expected ends it: its successor adopts."""
        async with asyncio.TaskGroup() as self._tasks:
            await self._adopt()
            while not (self._stopping and not self._units):
                self._wake.clear()
                plan = self._plan()
                for action in plan.actions:
                    await self._apply(action)
                self._publish()
                if not plan.actions:
                    await self._await_change(plan.look_again_at_s)
        await self._store.remove()
        self._publish()
        self._stopped.set()

    async def membership(self, version: int | None) -> Membership:
        """The replicas as soon as they are others than those of the caller's version."""
        return Membership(*await self._replicas.other_than(version))

    async def status(self, version: int | None) -> tuple[int, DeploymentStatus]:
        return await self._status.other_than(version)

    async def stop(self, grace_s: float) -> None:
        """Drain, end everything, return when all is gone. It goes on without its caller; 0 also cuts a drain short."""
        await self._adopted.wait()  # what is stored until then is a former controller's
        if not self._stopping:
            self._state = replace(self._state, stop_grace_s=grace_s)
            await self._store.save(self._state)
            log.info("stops; running requests have %g s", grace_s)
        if grace_s == 0:
            self._hurry.set()
        self._wake.set()
        await self._stopped.wait()

    @property
    def _stopping(self) -> bool:
        return self._state.stop_grace_s is not None

    def _wanted(self) -> list[str]:
        config = self._state.config
        replicas = [replica_name(index) for index in range(config.replicas)]
        return replicas + [router_name(index) for index in range(config.routers.count)]

    async def _adopt(self) -> None:
        """Take over a former controller's units, where there was one, and end what is left over."""
        known = await self._store.load()
        if known is not None:
            self._state = known
            self._launcher = self._make_launcher(known)
        for record in self._state.units:
            unit = self._units[record.unit] = Unit(record.unit, is_router(record.unit), record.incarnation)
            if record.facts is None:
                continue
            launched = await self._launcher.adopt(record.unit, record.incarnation, record.facts)
            if launched is not None:
                log.info("adopts %s.%d", unit.name, unit.incarnation)
                self._tend(unit, launched, record.facts)
        await self._launcher.sweep([unit.record() for unit in self._units.values() if unit.alive])
        await self._save()
        self._adopted.set()

    def _plan(self) -> Plan:
        observed = [unit.observed() for unit in self._units.values()]
        return reconcile(self._wanted(), observed, self._clock(), self._stopping)

    async def _apply(self, action: Action) -> None:
        if action.verb is Verb.FORGET:
            del self._units[action.unit]
        elif action.verb is Verb.DRAIN:
            unit = self._units[action.unit]
            was_ready = unit.state is ReplicaState.READY
            unit.state, unit.detail = ReplicaState.DRAINING, ""
            self._tasks.create_task(self._drain(unit, was_ready))
        else:
            await self._start(action.unit)

    async def _start(self, name: str) -> None:
        unit = self._units.setdefault(name, Unit(name, is_router(name)))
        unit.incarnation += 1
        unit.state, unit.facts, unit.ready_at_s = ReplicaState.STARTING, None, None
        await self._save()
        log.info("starts %s.%d", name, unit.incarnation)
        self._tend(unit, self._launcher.launch(name, unit.incarnation), None)

    def _tend(self, unit: Unit, launched: Launched, facts: UnitFacts | None) -> None:
        unit.launched = launched
        unit.work = self._tasks.create_task(self._work(unit, launched, facts))
        unit.task = self._tasks.create_task(self._clean_up_after(unit.work, launched))
        unit.task.add_done_callback(lambda _: self._wake.set())

    async def _work(self, unit: Unit, launched: Launched, facts: UnitFacts | None) -> None:
        """From start to death. Cancelled when the unit has drained."""
        try:
            if facts is None:
                facts = await launched.start(partial(self._tell, unit))
            await self._become_ready(unit, facts)
            self._fail(unit, await launched.watch(), hopeless=False)
        except StartFailed as error:
            self._fail(unit, error.message, error.hopeless)

    @staticmethod
    async def _clean_up_after(work: asyncio.Task[None], launched: Launched) -> None:
        await asyncio.wait([work])
        await launched.kill()

    async def _drain(self, unit: Unit, was_ready: bool) -> None:
        assert unit.launched is not None and unit.work is not None, "a unit that is not alive cannot drain"
        if was_ready and not self._hurry.is_set():
            grace_s = self._state.stop_grace_s
            drain = asyncio.ensure_future(unit.launched.drain(grace_s or 0.0))
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait([drain, hurry, unit.work], return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            hurry.cancel()
        unit.work.cancel()

    async def _become_ready(self, unit: Unit, facts: UnitFacts) -> None:
        unit.facts, unit.ready_at_s, unit.detail, unit.proven = facts, self._clock(), "", True
        if unit.state is not ReplicaState.DRAINING:
            unit.state = ReplicaState.READY
        await self._save()
        self._publish()

    def _fail(self, unit: Unit, detail: str, hopeless: bool) -> None:
        if unit.state is ReplicaState.DRAINING:
            return  # it ended because it was told to
        now_s = self._clock()
        ready_for_s = None if unit.ready_at_s is None else now_s - unit.ready_at_s
        unit.failures = failures_in_a_row(unit.failures, ready_for_s)
        unit.state, unit.facts, unit.failed_at_s = ReplicaState.FAILED, None, now_s
        unit.detail, unit.hopeless = detail, hopeless and not unit.proven
        log.error("%s.%d failed (%d in a row): %s", unit.name, unit.incarnation, unit.failures, detail)
        self._publish()

    def _tell(self, unit: Unit, doing: str) -> None:
        """What a start waits for; a first failure's reason stays in sight until the unit is ready."""
        if not unit.failures:
            unit.detail = doing
            self._publish()

    def _publish(self) -> None:
        """Nothing before all has been adopted: an empty membership would cut every router off."""
        infos = [unit.info() for unit in sorted(self._units.values(), key=lambda unit: unit.name)]
        replicas = tuple(info for info in infos if not is_router(info.replica_id))
        self._replicas.publish(replicas)
        hopeless = next((unit.detail for unit in self._units.values() if unit.hopeless), "")
        routers = tuple(info for info in infos if is_router(info.replica_id))
        self._status.publish(status_of(replicas, routers, hopeless, self._stopping))

    async def _await_change(self, look_again_at_s: float | None) -> None:
        wait_s = None if look_again_at_s is None else max(0.0, look_again_at_s - self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    async def _save(self) -> None:
        units = tuple(unit.record() for unit in self._units.values())
        self._state = replace(self._state, units=units)
        await self._store.save(self._state)
