"""What the controller keeps alive: a unit is one replica or one router, through all its incarnations.

`Launched` is the seam to Ray: `replica_group.py` and `router_process.py` implement it, a test's fake is a few lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from controller.rollout import Observed
from protocol.demand import RouterDemand
from protocol.errors import TrunklineError
from protocol.membership import ReplicaInfo, ReplicaState, ServedModel, WorkerInfo


class StartFailed(TrunklineError):
    """An incarnation did not come up. `hopeless`: nor will the next one, until somebody changes the wanted state."""

    code = "start_failed"

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """Where a unit is reached and which processes it is."""

    host: str
    port: int
    workers: tuple[WorkerInfo, ...]


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What a restarted controller needs of a unit. No facts: it was not ready, and is started anew."""

    unit: str
    incarnation: int
    facts: UnitFacts | None = None
    revision: str = ""
    draining: bool = False
    serves: ServedModel | None = None  # None: it is a router


Tell = Callable[[str], None]  # what a start is waiting for


class Launched(Protocol):
    """One incarnation of a unit: actors, processes and the resources that they hold."""

    async def start(self, tell: Tell) -> UnitFacts:
        """Bring it up; ready when this returns. Raises StartFailed."""
        ...

    async def watch(self) -> str:
        """Wait until the first of its processes dies; returns why."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, return when nothing runs or the time is over."""
        ...

    async def kill(self) -> None:
        """After this its processes are gone and its resources free, whatever state it was in."""
        ...


@runtime_checkable
class Router(Launched, Protocol):
    """What a router does beside: it knows which requests run on a replica."""

    async def demand(self) -> tuple[RouterDemand, ...]:
        """One for each version of each model; none when it does not answer."""
        ...

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        """How many blocks are cached at each replica and nowhere else; nothing when it does not answer."""
        ...

    async def meet(self, replica: str, incarnation: int) -> str:
        """Returns when this router sends it requests (nothing), or knows that it never will (why)."""
        ...

    async def vacate(self, replica: str, grace_s: float) -> None:
        """Send it nothing new; return when none of this router's requests runs there any more.

        They may end there until the time is over, then they go on elsewhere, or stay while there is nowhere to go.
        """
        ...


class Launcher(Protocol):
    """Makes incarnations, and finds those that a former controller made."""

    def launch(self, unit: str, incarnation: int, model: str) -> Launched:
        """A replica of a model, by its name; a router where that is empty."""
        ...

    async def adopt(self, record: UnitRecord, facts: UnitFacts) -> Launched | None:
        """None: it is no longer whole."""
        ...

    async def nodes(self) -> tuple[str, ...]:
        """The ids of the nodes that are alive, in order."""
        ...

    async def sweep(self, keep: Sequence[UnitRecord]) -> None:
        """End whatever bears this deployment's names and is none of these."""
        ...


@dataclass(slots=True)
class Unit:
    """One unit's present. Changed by its own task in `controller.py`, read by everybody there."""

    name: str
    serves: ServedModel | None = None  # by its present incarnation; None: it is a router
    incarnation: int = 0
    revision: str = ""  # of the present incarnation
    state: ReplicaState = ReplicaState.STARTING
    facts: UnitFacts | None = None
    detail: str = ""
    failures: int = 0
    failed_at_s: float = 0.0
    ready_at_s: float | None = None
    hopeless: bool = False
    num_own_blocks: int = 0  # cached nowhere else, as far as a router has told
    accepted: bool = False  # every router that was there sends it requests
    proven: bool = False  # it has been accepted once, so whatever fails now may pass
    launched: Launched | None = None
    work: asyncio.Task[None] | None = field(default=None, repr=False)  # from start to death
    task: asyncio.Task[None] | None = field(default=None, repr=False)  # to the end of its processes

    @property
    def is_router(self) -> bool:
        return self.serves is None

    @property
    def model(self) -> str:
        return "" if self.serves is None else self.serves.name

    @property
    def alive(self) -> bool:
        return self.task is not None and not self.task.done()

    def observed(self) -> Observed:
        return Observed(
            self.name,
            self.alive,
            self.model,
            ready=self.state is ReplicaState.READY and self.accepted,
            draining=self.state is ReplicaState.DRAINING,
            revision=self.revision,
            num_own_blocks=self.num_own_blocks,
            failures=self.failures,
            failed_at_s=self.failed_at_s,
            hopeless=self.hopeless,
        )

    def info(self) -> ReplicaInfo:
        version = "" if self.serves is None else self.serves.version
        info = ReplicaInfo(self.name, self.state, self.incarnation, detail=self.detail, serves=version)
        facts = self.facts
        if facts is None:
            return info
        return replace(info, host=facts.host, port=facts.port, workers=facts.workers)

    def record(self) -> UnitRecord:
        draining = self.state is ReplicaState.DRAINING
        return UnitRecord(self.name, self.incarnation, self.facts, self.revision, draining, self.serves)

    def forgive(self) -> None:
        """It is to be started differently now: former failures say nothing of that."""
        self.failures, self.hopeless, self.proven = 0, False, False
