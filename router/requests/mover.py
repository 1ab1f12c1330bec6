"""Moves requests from a replica that is lost, hangs or drains to others, where they go on from the tokens they have.

Told by `dispatcher.py` what became of a replica. Bounds how often one request moves, stops the one that kills
replicas, and never interrupts a stream that has nowhere to go while its replica still runs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from protocol.errors import FatalRequest, ReplicaLost, TrunklineError
from router.replicas.replica_view import ReplicaView
from router.requests.generation import Generation
from router.requests.placer import Placer
from router.requests.suspects import Suspects
from router.requests.waiting_room import WaitingRoom
from router.router_config import RouterConfig
from router.router_status import RouterCounters

log = logging.getLogger(__name__)


class Mover:
    """`fail` ends a request with an error. Whoever waits, for a replica or for its turn, waits in the `room`."""

    def __init__(
        self,
        config: RouterConfig,
        placer: Placer,
        room: WaitingRoom,
        views: Mapping[str, ReplicaView],
        counters: RouterCounters,
        fail: Callable[[Generation, TrunklineError], None],
    ) -> None:
        self._config = config
        self._placer = placer
        self._room = room
        self._views = views
        self._counters = counters
        self._fail = fail
        self._suspects = Suspects(config.max_deaths, config.apart_timeout_s, self._let_go)

    # What became of a replica

    def lost(self, view: ReplicaView, reason: str) -> None:
        self._counters.replica_losses += not view.departing
        self._abandon(view, f"is lost ({reason})", cancel=False)

    def hung(self, view: ReplicaView, reason: str) -> None:
        self._counters.hangs += 1
        self._abandon(view, f"hangs ({reason})", cancel=True)

    def back(self, view: ReplicaView) -> None:
        """It is connected, or steps again. If it is what was taken for dead, nobody killed it."""
        everyone = [*self._room, *(each for other in self._views.values() for each in other.live.values())]
        self._suspects.pardon(everyone, view.life)
        self.seat_waiting()

    def refused(self, view: ReplicaView, generation: Generation) -> None:
        """It drains, and told so before the controller did. The request had not begun: that is no move."""
        view.refuse_new()
        self._placer.unseat(view, generation, cancel=False)
        self._seat(generation)

    def clear(self, view: ReplicaView) -> None:
        """Its drain is overdue: what can go on elsewhere does; the rest stays until it can, or has ended."""
        for generation in list(view.live.values()):
            if generation.moves < self._config.max_moves and self._placer.candidates(generation):
                self._placer.unseat(view, generation, cancel=True)
                self._move(generation, "the replica drains")

    def seat_waiting(self) -> None:
        """Something that some of those who wait have waited for has happened."""
        turn_taken = False
        for generation in self._room:
            if not (generation.apart and turn_taken):
                self._seat(generation)
                turn_taken |= generation.apart and generation.placement is None
        for view in self._views.values():
            if view.overdue:
                self.clear(view)

    def close(self) -> None:
        self._suspects.close()

    # Moving

    def _abandon(self, view: ReplicaView, fate: str, *, cancel: bool) -> None:
        displaced = sorted(
            view.live.values(), key=lambda each: not each.heard
        )  # whose client reads goes first
        if not displaced:
            return
        log.warning("replica %s %s: %d requests move", view.replica_id, fate, len(displaced))
        culprit = None if view.departing else self._suspects.blame(displaced, view.life)
        for generation in displaced:
            self._placer.unseat(view, generation, cancel=cancel)
            generation.apart = generation.deaths > 0
        for generation in displaced:
            if generation is culprit:
                self._stop(generation)
            else:
                self._move(generation, f"replica {view.replica_id} {fate}")

    def _move(self, generation: Generation, reason: str) -> None:
        if generation.moves == self._config.max_moves:
            self._fail(generation, ReplicaLost(f"moved {generation.moves} times, then: {reason}"))
            return
        generation.moves += 1
        self._counters.moves += 1
        self._seat(generation)

    def _stop(self, generation: Generation) -> None:
        self._counters.fatal_requests += 1
        replicas = ", ".join(
            f"{replica} ({incarnation})" for replica, incarnation in sorted(generation.blames)
        )
        log.error(
            "request %s is stopped: it ran on every one of %s when they died or hung (%d prompt tokens, %d generated)",
            generation.request.request_id,
            replicas,
            generation.num_prompt_tokens,
            generation.num_generated_tokens,
        )
        message = f"{generation.deaths} replicas died while they ran this request: do not send it again"
        self._fail(generation, FatalRequest(message))

    def _seat(self, generation: Generation) -> None:
        """Outside its consumer's call. A fault in routing ends this request with an answer, and no other."""
        try:
            self._placer.seat(generation)
        except Exception as fault:
            log.exception("request %s could not be placed", generation.request.request_id)
            self._fail(generation, TrunklineError(f"the router could not place the request: {fault!r}"))
        if generation.apart and generation.placement is None and self._placer.some_ready:
            self._suspects.wait()

    def _let_go(self) -> None:
        for generation in self._room:
            generation.apart = False
        self.seat_waiting()
