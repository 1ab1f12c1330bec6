"""Which request killed a replica? Blame, and how those who share it are kept apart. Asked by `mover.py`.

A death blames everything that ran there, and nobody can tell more from one death. So for a short time its requests
are started apart: of those that have not had an output since, no two share a replica. Each needs a step or two for
that, a replica minutes to come back. Whatever dies next has one suspect, and that is stopped; all others go on.

    death     everything that ran there: blamed for it, goes apart
    output    may share its replica with others again
    proof     some tokens at one place (`generation.PROOF_TOKENS`): blamed for nothing
    pardon    the same incarnation is back, or steps again: it was not dead

Whose turn has not come in time moves like any other; then the next death may have several suspects, and stops none.
The price, with steps of 15 ms and 64 streams of 500 tokens: the last one goes on after 2.8 s rather than 2.0 s where
one replica is left, after 1.2 s rather than 0.7 s where three are. A replica that dies of something else while a
suspect is started there costs that one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from router.requests.generation import Death, Generation


class Suspects:
    """`let_go` is called when those who wait for their turn need wait no longer."""

    def __init__(self, max_deaths: int, apart_timeout_s: float, let_go: Callable[[], None]) -> None:
        self._max_deaths = max_deaths
        self._apart_timeout_s = apart_timeout_s
        self._let_go = let_go
        self._timer: asyncio.TimerHandle | None = None  # while somebody waits

    def blame(self, victims: Collection[Generation], death: Death) -> Generation | None:
        """Told before they lose their places. The one that is to be stopped, if it can be told."""
        for generation in victims:
            generation.blames.add(death)
        return self._culprit(victims)

    def pardon(self, generations: Iterable[Generation], death: Death) -> None:
        for generation in generations:
            generation.blames.discard(death)
            generation.apart &= bool(generation.blames)

    def wait(self) -> None:
        """Somebody waits for its turn."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._apart_timeout_s, self._time_out)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        self._let_go()

    def _culprit(self, victims: Collection[Generation]) -> Generation | None:
        """Alone in having seen the most deaths; of several, alone in having had no output where it was."""
        worst = max(map(_rank, victims), default=(0, False))
        suspects = [generation for generation in victims if _rank(generation) == worst]
        return suspects[0] if len(suspects) == 1 and worst[0] >= self._max_deaths else None


def _rank(generation: Generation) -> tuple[int, bool]:
    return generation.deaths, not generation.heard


def may_join(live: Iterable[Generation]) -> bool:
    """Whether one that goes apart may join these."""
    return not any(generation.apart for generation in live)
