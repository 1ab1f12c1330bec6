"""Puts a request on the replica that the policy chooses, or into the waiting room, and takes it off again.

Used by `dispatcher.py` for new requests and by `mover.py` for displaced ones; knows of neither why. Nothing here waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from protocol.errors import NoReplica
from router.prefixes.prefix_index import IndexState, PrefixIndex
from router.replicas.replica_view import ReplicaView
from router.requests.generation import Generation, Placement
from router.requests.routed_request import RoutedRequest
from router.requests.suspects import may_join
from router.requests.waiting_room import WaitingRoom
from router.router_status import RouterCounters
from router.routing.explanation import Explanation
from router.routing.policy import choose
from router.routing.weighing import Weighing


class Placer:
    """`views` is the router's own mapping, read at every decision."""

    def __init__(
        self,
        weighing: Weighing,
        index: PrefixIndex,
        views: Mapping[str, ReplicaView],
        room: WaitingRoom,
        counters: RouterCounters,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._weighing = weighing
        self._index = index
        self._views = views
        self._room = room
        self._counters = counters
        self._rng = rng
        self._clock = clock

    @property
    def some_ready(self) -> bool:
        return any(view.accepting for view in self._views.values())

    def candidates(self, generation: Generation) -> dict[str, ReplicaView]:
        ready = {view.replica_id: view for view in self._views.values() if view.accepting}
        if generation.apart:
            return {replica: view for replica, view in ready.items() if may_join(view.live.values())}
        return ready

    def explain(self, request: RoutedRequest) -> Explanation:
        """What would be decided now, and from what. Raises NoReplica."""
        ready = [view.replica_id for view in self._views.values() if view.accepting]
        if not ready:
            raise NoReplica("no replica is ready")
        return self._weighing.explain(request, ready)

    def seat(self, generation: Generation) -> None:
        """Decide and submit, in one go; with no candidate it waits."""
        candidates = self.candidates(generation)
        if not candidates:
            self._room.enter(generation)
            return
        digests, request, loads = self._weighing.weigh(generation, candidates)
        decision = choose(request, loads, self._rng)
        self._counters.decisions[decision.reason] += 1
        exact = self._index.state(decision.replica) is IndexState.SYNCED
        expectation = self._index.expect(decision.replica, digests, self._clock())
        placement = Placement(decision, generation.next_wire_id, expectation, exact)
        self._room.leave(generation)
        generation.place(placement)
        candidates[decision.replica].submit(generation, placement)

    def unseat(self, view: ReplicaView, generation: Generation, *, cancel: bool) -> None:
        """It runs there no longer; `cancel`: the replica does not know that yet."""
        if generation.heard:
            generation.waiting_since_s = self._clock()
        placement = generation.displace()
        self._index.withdraw(placement.expectation)
        view.drop(placement.wire_id, cancel=cancel)

    def release(self, generation: Generation) -> None:
        """Nothing of it is left in the queue, on its replica or among the timers."""
        self._room.forget(generation)
        if generation.placement is None:
            return
        placement = generation.displace()
        self._index.withdraw(placement.expectation)
        view = self._views.get(placement.decision.replica)
        if view is not None:
            view.drop(placement.wire_id, cancel=generation.may_run_on and placement.wire_id in view.live)
