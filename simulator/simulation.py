"""The clock of a simulation: arrivals are routed, replicas say when something happens next, the earliest goes first.

Called by `comparison.py`. Two runs with equal arguments are equal: everything that is random comes from the seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.fleet import Fleet
from simulator.policies.policy import Policy
from simulator.replica import NEVER, Replica
from simulator.sequence import SimulatedSequence
from simulator.service_model import ServiceModel
from simulator.trace import TraceRequest
from workers.scheduling.waiting_line import WaitingLine

DEFAULT_MODEL = ServiceModel()


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the trace meets."""

    num_replicas: int
    cache_blocks: int  # of each replica
    model: ServiceModel = DEFAULT_MODEL
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """An admission order of the product, and how long a prefill runs before it is asked again."""

    line: Callable[[], WaitingLine]
    slice_s: float


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
        self.fleet = Fleet(
            deployment.num_replicas, deployment.cache_blocks, deployment.model, deployment.seed
        )
        self._policy = policy(self.fleet)
        self.replicas = [
            Replica(deployment.model, cache, order.line(), order.slice_s)
            for cache in self.fleet.caches(self._policy.shares_cache)
        ]
        self.fleet.replicas = self.replicas
        self._due_s = [NEVER] * deployment.num_replicas  # when each replica wants to be called
        self._agenda: list[tuple[float, int]] = []  # a heap of these, with some that hold no more
        self.ended: list[tuple[SimulatedSequence, float]] = []  # with the time of the last token
        self.num_late = 0  # first tokens later than `late_s`
        self._late_s = NEVER
        self._most_late = len(requests)

    def run(self) -> None:
        """To the end of the last request."""
        for request in self._requests:
            self._run_until(request.arrival_s)
            if self.num_late > self._most_late:
                return
            self._route(request)
        self._run_until(NEVER)

    def keeps(self, late_s: float, most_late: int) -> bool:
        """Run, unless more than `most_late` first tokens take longer: then False as soon as that is certain."""
        self._late_s, self._most_late = late_s, most_late
        self.run()
        return self.num_late <= most_late

    def _run_until(self, until_s: float) -> None:
        agenda, due_s = self._agenda, self._due_s
        while agenda and agenda[0][0] <= until_s and self.num_late <= self._most_late:
            at_s, number = heapq.heappop(agenda)
            if at_s != due_s[number]:
                continue  # something else happened there since
            self._handle(number, at_s)

    def _route(self, request: TraceRequest) -> None:
        fleet = self.fleet
        fleet.now_s = request.arrival_s
        number = self._policy.choose(request)
        self._policy.dispatched(request, number)
        fleet.dispatched(request, number)
        self.replicas[number].add(SimulatedSequence(request), fleet.now_s)
        self._schedule(number)

    def _handle(self, number: int, now_s: float) -> None:
        fleet = self.fleet
        fleet.now_s = now_s
        happened = self.replicas[number].handle(now_s)
        if happened.prefilled is not None:
            fleet.prefilled(happened.prefilled.request, number)
            self._policy.prefilled(happened.prefilled.request, number)
            assert happened.prefilled.ttft_s is not None, "its prefill has ended"
            self.num_late += happened.prefilled.ttft_s > self._late_s
        for sequence in happened.ended:
            fleet.ended(sequence.request, number)
            self._policy.ended(sequence.request, number)
            self.ended.append((sequence, now_s))
        self._policy.reported(number)
        self._schedule(number)

    def _schedule(self, number: int) -> None:
        due_s = self.replicas[number].next_event_s
        if due_s != self._due_s[number]:
            self._due_s[number] = due_s
            if due_s != NEVER:
                heapq.heappush(self._agenda, (due_s, number))
