"""The clock of a simulation: arrivals are routed, replicas say when something happens next, the earliest goes first.

Called by `comparison.py`. Two runs with equal arguments are equal: everything that is random comes from the seed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.messages import Load
from simulator.fleet import Fleet
from simulator.news import News
from simulator.policies.policy import Policy
from simulator.replica import Replica
from simulator.sequence import SimulatedSequence
from simulator.service_model import ServiceModel
from simulator.simulated_replica import NEVER, Happened, SimulatedReplica
from simulator.trace import TraceRequest
from workers.scheduling.waiting_line import WaitingLine

DEFAULT_MODEL = ServiceModel()
SEEDS_APART = 1_000_003  # of two routers


@dataclass(frozen=True, slots=True)
class Order:
    """An admission order of the product, and how long a prefill runs before it is asked again."""

    line: Callable[[], WaitingLine]
    slice_s: float


def fluid_replicas(
    deployment: Deployment, fleet: Fleet, order: Order, shared: bool
) -> Sequence[SimulatedReplica]:
    """Each with its own cache, or one for all."""
    caches = fleet.caches(shared)
    return [Replica(deployment.model, cache, order.line(), order.slice_s) for cache in caches]


@dataclass(frozen=True, slots=True)
class Slowdown:
    """From then on a replica takes so many times as long."""

    replica: int
    factor: float
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the trace meets. `make_replicas` is the fidelity: fluid here, exact in `exact.py`.

    Routers share nothing, and requests are dealt to them at random. What a replica sends, tokens, KV events and its
    load, reaches them all `event_lag_s` later; what they send arrives at once. A fluid replica tells its load
    whenever that changes, an engine after each step: let the lag be half a step at least.
    """

    num_replicas: int
    cache_blocks: int  # of each replica
    model: ServiceModel = DEFAULT_MODEL
    seed: int = 0
    make_replicas: Callable[[Deployment, Fleet, Order, bool], Sequence[SimulatedReplica]] = fluid_replicas
    num_routers: int = 1
    event_lag_s: float = 0.0
    slowdowns: tuple[Slowdown, ...] = ()


class Simulation:
    """One policy under one order. Run once."""

    def __init__(
        self,
        requests: Sequence[TraceRequest],
        deployment: Deployment,
        policy: Callable[[Fleet], Policy],
        order: Order,
    ) -> None:
        self._requests = requests
        self._news = News(deployment.event_lag_s)
        cached = self._news.holders(deployment.num_replicas)
        self.fleets = [
            Fleet(
                deployment.num_replicas,
                deployment.cache_blocks,
                deployment.model,
                deployment.seed + number * SEEDS_APART,
                cached,
            )
            for number in range(deployment.num_routers)
        ]
        self._routers = [policy(fleet) for fleet in self.fleets]
        self._num_sent = [[0] * deployment.num_routers for _ in range(deployment.num_replicas)]
        self._router_of: dict[int, Policy] = {}  # of each request in flight, as far as its router knows
        self._deal = random.Random(deployment.seed)
        shared = self._routers[0].shares_cache
        self.replicas = deployment.make_replicas(deployment, self.fleets[0], order, shared)
        for fleet in self.fleets:
            fleet.replicas = self.replicas
        for number, replica in enumerate(self.replicas):
            self._hear(
                number, Happened(), replica.load, 0.0, tuple(self._num_sent[number])
            )  # as every router does when it connects
        self._slowdowns = deque(sorted(deployment.slowdowns, key=lambda each: each.since_s))
        self._due_s = [NEVER] * deployment.num_replicas  # when each replica wants to be called
        self._agenda: list[tuple[float, int]] = []  # a heap of these, with some that hold no more
        self.ended: list[tuple[SimulatedSequence, float]] = []  # with the time of the last token
        self.num_late = 0  # first tokens later than `late_s`
        self._late_s = NEVER
        self._most_late = len(requests)

    @property
    def fleet(self) -> Fleet:
        """As the first router knows it."""
        return self.fleets[0]

    def run(self) -> None:
        """To the end of the last request."""
        for request in self._requests:
            self._slow_down(request.arrival_s)
            self._run_until(request.arrival_s)
            if self.num_late > self._most_late:
                return
            self._news.deliver(request.arrival_s)
            self._route(request)
        self._run_until(NEVER)
        self._news.deliver(NEVER)

    def keeps(self, late_s: float, most_late: int) -> bool:
        """Run, unless more than `most_late` first tokens take longer: then False as soon as that is certain."""
        self._late_s, self._most_late = late_s, most_late
        self.run()
        return self.num_late <= most_late

    def _slow_down(self, until_s: float) -> None:
        while self._slowdowns and self._slowdowns[0].since_s <= until_s:
            slowdown = self._slowdowns.popleft()
            self._run_until(slowdown.since_s)
            if slowdown.replica < len(self.replicas):
                self.replicas[slowdown.replica].slow_down(slowdown.factor)

    def _run_until(self, until_s: float) -> None:
        agenda, due_s = self._agenda, self._due_s
        while agenda and agenda[0][0] <= until_s and self.num_late <= self._most_late:
            at_s, number = heapq.heappop(agenda)
            if at_s != due_s[number]:
                continue  # something else happened there since
            self._handle(number, at_s)

    def _route(self, request: TraceRequest) -> None:
        place = 0 if len(self._routers) == 1 else self._deal.randrange(len(self._routers))
        router = self._routers[place]
        self._router_of[request.index] = router
        router.fleet.now_s = self._news.now_s = request.arrival_s
        number = router.choose(request)
        router.dispatched(request, number)
        router.fleet.dispatched(request, number)
        self._num_sent[number][place] += 1
        load = self.replicas[number].add(SimulatedSequence(request), request.arrival_s)
        if load is not None:
            self._tell(number, Happened(), load, request.arrival_s)
        self._schedule(number)

    def _handle(self, number: int, now_s: float) -> None:
        self._news.now_s = now_s
        replica = self.replicas[number]
        happened = replica.handle(now_s)
        for sequence in happened.prefilled:
            assert sequence.ttft_s is not None, "its prefill has ended"
            self.num_late += sequence.ttft_s > self._late_s
        self.ended.extend((sequence, now_s) for sequence in happened.ended)
        self._tell(number, happened, replica.load, now_s)
        self._schedule(number)

    def _tell(self, number: int, happened: Happened, load: Load, now_s: float) -> None:
        self._news.tell(self._hear, number, happened, load, now_s, tuple(self._num_sent[number]))

    def _hear(
        self, number: int, happened: Happened, load: Load, happened_s: float, num_submits: tuple[int, ...]
    ) -> None:
        """The routers learn of it: first whose request it is, then all how busy the replica was after it."""
        for place, router in enumerate(self._routers):
            router.fleet.now_s = happened_s
            router.fleet.num_submits[number] = num_submits[place]
            router.fleet.loads[number] = load
            router.fleet.events[number] = happened.events
        for sequence in happened.prefilled:
            router = self._router_of[sequence.request.index]
            router.fleet.prefilled(sequence.request, number)
            router.prefilled(sequence.request, number)
        for sequence in happened.ended:
            router = self._router_of.pop(sequence.request.index)
            router.fleet.ended(sequence.request, number)
            router.ended(sequence.request, number)
        for router in self._routers:
            router.reported(number)

    def _schedule(self, number: int) -> None:
        due_s = self.replicas[number].next_event_s
        if due_s != self._due_s[number]:
            self._due_s[number] = due_s
            if due_s != NEVER:
                heapq.heappush(self._agenda, (due_s, number))
