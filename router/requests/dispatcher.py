"""A request from its first place to its end: what its replica sends, when it is over, and what it is told then.

Between `router.py` (which knows the replicas) and the two that do the work: `placer.py` finds a place, `mover.py`
another one when that is lost. Nothing here waits: a request for which no replica is ready enters the waiting room,
and whatever makes one ready places it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from protocol.errors import (
    DeadlineExceeded,
    Draining,
    NoReplica,
    ReplicaLost,
    TrunklineError,
    error_from_code,
)
from protocol.messages import FinishReason, Rejected, SequenceOutput
from router.deployment import Deployment
from router.prefixes.prefix_index import PrefixIndex
from router.replicas.replica_view import ReplicaView
from router.requests.generation import Generation
from router.requests.mover import Mover
from router.requests.overload import Overload
from router.requests.placer import Placer
from router.requests.routed_request import RoutedRequest
from router.requests.waiting_room import WaitingRoom
from router.router_config import RouterConfig
from router.router_status import RouterCounters
from router.routing.explanation import Explanation
from router.routing.prefill_board import PrefillBoard
from router.routing.weighing import Weighing

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
        self._clock = clock
        self._room = WaitingRoom(config.admission_timeout_s, self._time_out)
        self._overload = Overload(config, board, counters, clock)
        weighing = Weighing(deployment, index, board, clock)
        self._placer = Placer(weighing, index, views, self._room, counters, rng, clock)
        self._mover = Mover(config, self._placer, self._room, views, counters, self.fail)

    @property
    def num_waiting(self) -> int:
        return len(self._room)

    @property
    def num_queued_tokens(self) -> int:
        return self._overload.num_queued_tokens

    @property
    def max_queued_tokens(self) -> int | None:
        return self._overload.max_queued_tokens

    @property
    def num_live(self) -> int:
        return len(self._room) + sum(len(view.live) for view in self._views.values())

    def set_admission_timeout(self, timeout_s: float) -> None:
        self._room.patience_s = timeout_s

    # A request begins and ends

    def begin(self, request: RoutedRequest) -> Generation:
        """Place it or let it wait. Raises Overloaded, DeadlineExceeded."""
        if request.deadline_s is not None and request.deadline_s <= 0.0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        self._overload.check(request, self.num_waiting, self._placer.some_ready)
        deadline_s = request.deadline_s
        expires_at = None if deadline_s is None else self._clock() + deadline_s
        generation = Generation(request, expires_at, self._stop_sequence)
        generation.waiting_since_s = self._clock()
        self._counters.requests += 1
        if deadline_s is not None:
            self._room.set_deadline(generation, deadline_s)
        try:
            self._placer.seat(generation)
        except BaseException:
            self._release(generation)
            raise
        self._overload.enter(generation)
        return generation

    def explain(self, request: RoutedRequest) -> Explanation:
        """What `begin` would decide now, and from what. Raises NoReplica."""
        return self._placer.explain(request)

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

    def close(self) -> None:
        self._mover.close()

    # What the views say

    def replica_ready(self) -> None:
        self._mover.seat_waiting()

    def replica_back(self, view: ReplicaView) -> None:
        self._mover.back(view)

    def replica_lost(self, view: ReplicaView, reason: str) -> None:
        self._mover.lost(view, reason)

    def replica_hung(self, view: ReplicaView, reason: str) -> None:
        self._mover.hung(view, reason)

    def drain_overdue(self, view: ReplicaView) -> None:
        self._mover.clear(view)

    def deliver(self, view: ReplicaView, output: SequenceOutput) -> None:
        generation = view.live.get(output.request_id)
        if generation is None:
            return  # cancelled here, not there yet
        if generation.num_cached_tokens is None and not generation.moves:
            self._compare(view, generation, output.num_cached_tokens)
        if not generation.heard:
            self._prefilled(view, generation)
        if output.finish_reason is FinishReason.ABORT and generation.expires_at is not None:
            self._time_out(generation)  # the replica's clock was faster
            return
        was_apart = generation.apart
        generation.push(output)
        if generation.done:
            self._counters.finished += 1
            self._release(generation)
        if was_apart:
            self._mover.seat_waiting()

    def _prefilled(self, view: ReplicaView, generation: Generation) -> None:
        """Its first output at its present place has come, so its prefill is over: events speak for its blocks."""
        placement = generation.placement
        assert placement is not None, "only a placed request has outputs"
        view.settle(placement.wire_id)
        self._overload.prefilled(generation)
        self._index.withdraw(placement.expectation)

    def reject(self, view: ReplicaView, rejected: Rejected) -> None:
        generation = view.live.get(rejected.request_id)
        if generation is None:
            return
        if rejected.code == Draining.code:
            self._mover.refused(view, generation)
        else:
            view.drop(rejected.request_id, cancel=False)  # there is nothing left to cancel
            self.fail(generation, error_from_code(rejected.code, rejected.reason, rejected.param))

    def _compare(self, view: ReplicaView, generation: Generation, actual: int) -> None:
        """Predicted, actual and best-available cached tokens of one request, at its first output."""
        assert generation.placement is not None, "an output comes from the present place"
        decision = generation.placement.decision
        self._counters.compare(generation.num_prompt_tokens, decision, actual)
        digests = generation.digests or ()
        if generation.placement.exact and view.check_prediction(decision.matched_tokens, actual, digests):
            self._counters.resyncs += 1
            log.warning("replica %s: predicted and reported cached tokens disagree", view.replica_id)

    # Waiting, deadlines, the end

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
        """Nothing of it is left. If others wait for their turn behind it, the next one comes."""
        if generation.apart and generation.placement is not None:
            asyncio.get_running_loop().call_soon(self._mover.seat_waiting)
        self._placer.release(generation)
        self._overload.leave(generation)
