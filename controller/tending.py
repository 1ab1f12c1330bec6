"""Keeps the units that are launched: from their start to the end of their processes. Owned by `controller.py`.

Decides nothing: what is to be started or drained, it is told; what becomes of a unit it writes into it, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from controller.log import log
from controller.reconcile import failures_in_a_row
from controller.unit import Launched, Router, StartFailed, Unit, UnitFacts
from protocol.membership import ReplicaState

INTRODUCTION_S = 30.0  # for routers to take a replica that has become ready
NOWHERE_TO_GO_S = 600.0  # for another replica to come up, when running requests have none to move to


class Tending:
    """`became_ready` is awaited before a unit counts as ready anywhere else; `changed` is told of everything.

    `routers` are those that are ready at the moment.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        routers: Callable[[], Sequence[Router]],
        became_ready: Callable[[Unit], Awaitable[None]],
        changed: Callable[[], None],
        note: Callable[[str, str], None],
    ) -> None:
        self._clock = clock
        self._routers = routers
        self._became_ready = became_ready
        self._changed = changed
        self._note = note
        self._tasks: asyncio.TaskGroup
        self._hurry = asyncio.Event()

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def hurry(self) -> None:
        """Drains are cut short from now on."""
        self._hurry.set()

    def tend(self, unit: Unit, launched: Launched, facts: UnitFacts | None) -> None:
        """From its start, or from here on if it runs (`facts`)."""
        unit.launched = launched
        unit.work = self._tasks.create_task(self._work(unit, launched, facts))
        unit.task = self._tasks.create_task(self._clean_up_after(unit.work, launched))
        unit.task.add_done_callback(lambda _: self._changed())

    def drain(self, unit: Unit, grace_s: float) -> None:
        """Nothing new, then the end: when nothing runs there, or after `grace_s`. One that is not ready ends now.

        What runs on a replica then, the routers move; for as long as they can move it nowhere, it is waited for.
        """
        was_ready = unit.state is ReplicaState.READY
        unit.state, unit.detail = ReplicaState.DRAINING, ""
        if was_ready:
            routers = () if unit.is_router else self._routers()
            self._tasks.create_task(self._drain(unit, grace_s, routers))
        elif unit.work is not None:
            unit.work.cancel()

    async def _work(self, unit: Unit, launched: Launched, facts: UnitFacts | None) -> None:
        """From start to death. Cancelled when the unit has drained."""
        try:
            if facts is None:
                facts = await launched.start(partial(self._tell, unit))
            await self._become_ready(unit, facts)
            self._fail(unit, await self._end_of(unit, launched), hopeless=False)
        except StartFailed as error:
            self._fail(unit, error.message, error.hopeless)

    async def _end_of(self, unit: Unit, launched: Launched) -> str:
        """Why it has died, or why a router will never send it anything."""
        death = asyncio.create_task(launched.watch())
        refusal = asyncio.create_task(self._introduce(unit))
        try:
            await asyncio.wait([death, refusal], return_when=asyncio.FIRST_COMPLETED)
            if refusal.done() and refusal.result():
                return refusal.result()
            return await death
        finally:
            death.cancel()
            refusal.cancel()

    async def _introduce(self, unit: Unit) -> str:
        """Until every router sends it requests, or one refuses it, or they have had time enough.

        A router that does not answer must not keep a replica out; one that refuses it must: for a replica of another
        model or of other files nothing would be left to serve once its predecessors had gone.
        """
        routers = () if unit.is_router else self._routers()
        meetings = [asyncio.create_task(router.meet(unit.name, unit.incarnation)) for router in routers]
        try:
            async with asyncio.timeout(INTRODUCTION_S):
                for meeting in asyncio.as_completed(meetings):
                    if refusal := await meeting:
                        return refusal
        except TimeoutError:
            log.warning("not every router has taken %s.%d", unit.name, unit.incarnation)
        finally:
            for task in meetings:
                task.cancel()
        unit.accepted = unit.proven = True
        self._changed()
        return ""

    @staticmethod
    async def _clean_up_after(work: asyncio.Task[None], launched: Launched) -> None:
        await asyncio.wait([work])
        await launched.kill()

    async def _drain(self, unit: Unit, grace_s: float, routers: Sequence[Router]) -> None:
        assert unit.work is not None, "a unit that is not alive cannot drain"
        drain = asyncio.ensure_future(self._empty(unit, grace_s, routers))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait([drain, hurry, unit.work], return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        hurry.cancel()
        unit.work.cancel()

    @staticmethod
    async def _empty(unit: Unit, grace_s: float, routers: Sequence[Router]) -> None:
        assert unit.launched is not None, "a unit that is not alive cannot drain"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + NOWHERE_TO_GO_S):
                await asyncio.gather(*(router.vacate(unit.name, grace_s) for router in routers))
        await unit.launched.drain(grace_s)

    async def _become_ready(self, unit: Unit, facts: UnitFacts) -> None:
        unit.facts, unit.ready_at_s, unit.detail = facts, self._clock(), ""
        if unit.state is not ReplicaState.DRAINING:
            unit.state = ReplicaState.READY
        await self._became_ready(unit)

    def _fail(self, unit: Unit, detail: str, hopeless: bool) -> None:
        if unit.state is ReplicaState.DRAINING:
            return  # it ended because it was told to
        now_s = self._clock()
        ready_for_s = None if unit.ready_at_s is None else now_s - unit.ready_at_s
        unit.failures = failures_in_a_row(unit.failures, ready_for_s)
        unit.state, unit.facts, unit.failed_at_s = ReplicaState.FAILED, None, now_s
        unit.detail, unit.hopeless = detail, hopeless and not unit.proven
        log.error("%s.%d failed (%d in a row): %s", unit.name, unit.incarnation, unit.failures, detail)
        self._note(unit.name, f"failed ({unit.failures} in a row): {detail}")
        self._changed()

    def _tell(self, unit: Unit, doing: str) -> None:
        """What a start waits for; a first failure's reason stays in sight until the unit is ready."""
        if not unit.failures:
            unit.detail = doing
            self._changed()
