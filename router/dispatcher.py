"""Decides where each request runs and keeps it running: places it, moves it off a lost replica, ends it.

Between `router.py` (which knows the replicas) and `policy.py` (which knows none of this). Nothing here waits: a
request for which no replica is ready enters the waiting room, and whatever makes one ready places it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping

from protocol.errors import (
    DeadlineExceeded,
    Draining,
    NoReplica,
    Overloaded,
    ReplicaLost,
    TrunklineError,
    error_from_code,
)
from protocol.messages import FinishReason, Rejected, SequenceOutput
from router.deployment import Deployment
from router.explanation import Explanation
from router.generation import Generation, Placement
from router.policy import choose
from router.prefill_board import PrefillBoard
from router.prefix_index import IndexState, PrefixIndex
from router.replica_view import ReplicaView
from router.routed_request import RoutedRequest
from router.router_config import RouterConfig
from router.router_status import RouterCounters
from router.waiting_room import WaitingRoom
from router.weighing import Weighing

log = logging.getLogger(__name__)


class Dispatcher:
    """A `ViewOwner`. `views` is the router's own mapping, read at every decision."""

    def __init__(
        self,
        config: RouterConfig,
        deployment: Deployment,
        index: PrefixIndex,
        board: PrefillBoard,
        views: Mapping[str, ReplicaView],
        counters: RouterCounters,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._index = index
        self._views = views
        self._counters = counters
        self._rng = rng
        self._clock = clock
        self._weighing = Weighing(deployment, index, board, clock)
        self._room = WaitingRoom(config.admission_timeout_s, self._time_out)

    @property
    def num_waiting(self) -> int:
        return len(self._room)

    @property
    def num_live(self) -> int:
        return len(self._room) + sum(len(view.live) for view in self._views.values())

    # A request begins and ends

    def begin(self, request: RoutedRequest) -> Generation:
        """Place it or let it wait. Raises Overloaded, DeadlineExceeded."""
        if request.deadline_s is not None and request.deadline_s <= 0.0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        self._refuse_overload()
        deadline_s = request.deadline_s
        expires_at = None if deadline_s is None else self._clock() + deadline_s
        generation = Generation(request, expires_at, self._stop_sequence)
        self._counters.requests += 1
        if deadline_s is not None:
            self._room.set_deadline(generation, deadline_s)
        try:
            self._place_or_wait(generation)
        except BaseException:
            self._release(generation)
            raise
        return generation

    def explain(self, request: RoutedRequest) -> Explanation:
        """What `begin` would decide now, and from what. Raises NoReplica."""
        ready = [view.replica_id for view in self._views.values() if view.accepting]
        if not ready:
            raise NoReplica("no replica is ready", retry_after_s=self._config.retry_after_s)
        return self._weighing.explain(request, ready)

    def end(self, generation: Generation) -> None:
        """Its consumer has left: whatever still runs is cancelled. May be called for one that is over."""
        if not generation.over:
            self._counters.cancelled += 1
        self._release(generation)

    def fail(self, generation: Generation, error: TrunklineError) -> None:
        if not generation.over:
            self._counters.failed += 1
            generation.fail(error)
        self._release(generation)

    def _stop_sequence(self, generation: Generation, index: int) -> None:
        """The replica is told; the last sequence to stop ends the request."""
        placement = generation.placement
        view = None if placement is None else self._views.get(placement.decision.replica)
        if placement is not None and view is not None:
            view.stop_sequence(placement.wire_id, index)
        if generation.done:
            self._counters.finished += 1
            self._release(generation)

    def fail_all(self, error: Callable[[], TrunklineError]) -> None:
        live = [generation for view in self._views.values() for generation in view.live.values()]
        for generation in [*live, *self._room]:
            self.fail(generation, error())

    # What the views say

    def replica_ready(self) -> None:
        for generation in self._room:
            self._place_again(generation)

    def replica_lost(self, view: ReplicaView, reason: str) -> None:
        """Everything that ran there goes on elsewhere, from the tokens that it already has."""
        displaced = list(view.live.values())
        self._counters.replica_losses += not view.leaving
        if displaced:
            log.warning("replica %s is lost (%s): %d requests move", view.replica_id, reason, len(displaced))
        for generation in displaced:
            generation.deaths += not view.leaving
            self._move(view, generation, reason)

    def deliver(self, view: ReplicaView, output: SequenceOutput) -> None:
        generation = view.live.get(output.request_id)
        if generation is None:
            return  # cancelled here, not there yet
        if generation.num_cached_tokens is None and not generation.moves:
            self._compare(view, generation, output.num_cached_tokens)
        view.settle(output.request_id)
        if generation.placement is not None:
            self._index.withdraw(generation.placement.expectation)  # its prefill is over: events speak for it
        if output.finish_reason is FinishReason.ABORT and generation.expires_at is not None:
            self._time_out(generation)  # the replica's clock was faster
            return
        generation.push(output)
        if generation.done:
            self._counters.finished += 1
            self._release(generation)

    def reject(self, view: ReplicaView, rejected: Rejected) -> None:
        generation = view.live.get(rejected.request_id)
        if generation is None:
            return
        if rejected.code == Draining.code:
            view.refuse_new()
            self._move(view, generation, rejected.reason)
        else:
            view.drop(rejected.request_id, cancel=False)  # there is nothing left to cancel
            self.fail(generation, error_from_code(rejected.code, rejected.reason, rejected.param))

    # Placing

    def _place_or_wait(self, generation: Generation) -> None:
        if not self._place(generation):
            self._room.enter(generation)

    def _place_again(self, generation: Generation) -> None:
        """Outside its consumer's call. A fault in routing ends this request with an answer, and no other."""
        try:
            self._place_or_wait(generation)
        except Exception as fault:
            log.exception("request %s could not be placed", generation.request.request_id)
            self.fail(generation, TrunklineError(f"the router could not place the request: {fault!r}"))

    def _place(self, generation: Generation) -> bool:
        """Decide and submit, in one go. False: no replica is ready."""
        ready = {view.replica_id: view for view in self._views.values() if view.accepting}
        if not ready:
            return False
        digests, request, loads = self._weighing.weigh(generation, ready)
        decision = choose(request, loads, self._rng)
        self._counters.decisions[decision.reason] += 1
        exact = self._index.state(decision.replica) is IndexState.SYNCED
        expectation = self._index.expect(decision.replica, digests, self._clock())
        placement = Placement(decision, generation.next_wire_id, expectation, exact)
        self._room.leave(generation)
        generation.place(placement)
        ready[decision.replica].submit(generation, placement)
        return True

    def _move(self, view: ReplicaView, generation: Generation, reason: str) -> None:
        self._displace(view, generation)
        generation.moves += 1
        if generation.deaths >= self._config.max_deaths:
            self.fail(
                generation, ReplicaLost(f"{generation.deaths} replicas died while they ran this request")
            )
        elif generation.moves > self._config.max_moves:
            self.fail(generation, ReplicaLost(f"moved {self._config.max_moves} times, then: {reason}"))
        else:
            self._counters.moves += 1
            self._place_again(generation)

    def _displace(self, view: ReplicaView, generation: Generation) -> None:
        placement = generation.displace()
        view.drop(placement.wire_id, cancel=False)
        self._index.withdraw(placement.expectation)

    def _compare(self, view: ReplicaView, generation: Generation, actual: int) -> None:
        """Predicted, actual and best-available cached tokens of one request, at its first output."""
        assert generation.placement is not None, "an output comes from the present place"
        decision = generation.placement.decision
        self._counters.compare(generation.num_prompt_tokens, decision, actual)
        if generation.placement.exact and view.check_prediction(decision.matched_tokens, actual):
            self._counters.resyncs += 1
            log.warning("replica %s: predicted and reported cached tokens disagree", view.replica_id)

    # Waiting, deadlines, the end

    def _refuse_overload(self) -> None:
        config = self._config
        nobody_ready = not any(view.accepting for view in self._views.values())
        if self.num_live >= config.max_live_requests or (
            nobody_ready and self.num_waiting >= config.max_waiting_requests
        ):
            self._counters.overloaded += 1
            raise Overloaded(
                "the router has all the requests that it can hold: try again later",
                retry_after_s=config.retry_after_s,
            )

    def _time_out(self, generation: Generation) -> None:
        if generation.placement is not None:
            self.fail(generation, DeadlineExceeded("the deadline passed before the answer was complete"))
        elif generation.moves:
            self.fail(generation, ReplicaLost("its replica was lost, and no other became ready in time"))
        else:
            self.fail(
                generation,
                NoReplica("no replica became ready in time", retry_after_s=self._config.retry_after_s),
            )

    def _release(self, generation: Generation) -> None:
        """Nothing of it is left in the queue, on its replica or among the timers."""
        self._room.forget(generation)
        if generation.placement is None:
            return
        placement = generation.displace()
        self._index.withdraw(placement.expectation)
        view = self._views.get(placement.decision.replica)
        if view is not None:
            view.drop(placement.wire_id, cancel=not generation.done and placement.wire_id in view.live)
