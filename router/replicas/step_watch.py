"""Notices that a replica which has work takes no step: its socket stands, its pings are answered, nothing comes.

One per replica, kept by `replica_view.py`. It costs one timer, armed only while something is live there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

FIRST_STEP_PATIENCE = 5.0  # the first one may compile, or page the model in
SLOWEST_PATIENCE = 3.0  # times the longest step that it took so far
SECOND_LOOK = (
    0.1  # of the timeout later: if this process itself stood still, the steps are being read just now
)


class Timer(Protocol):
    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]


class StepWatch:
    """`on_hang` is called once, with the seconds without a step; the next step ends the hang."""

    def __init__(
        self,
        timeout_s: float,
        prefill_s: Callable[[], float],
        on_hang: Callable[[float], None],
        clock: Callable[[], float],
        call_later: CallLater | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._prefill_s = prefill_s  # of all that waits there: one step may have that much to do
        self._on_hang = on_hang
        self._clock = clock
        self._call_later = call_later
        self.hung_s: float | None = None  # for how long when it was noticed; None: it does not hang
        self._since_s: float | None = None  # the last step, or when work began; None: there is no work
        self._longest_s: float | None = None  # None: no step has been seen
        self._timer: Timer | None = None
        self._looked = False  # once in vain, since the last step

    def work(self) -> None:
        """Something is live there. Told as often as one likes."""
        if self._since_s is None:
            self._since_s, self._looked = self._clock(), False
            self._arm(self._patience_s)

    def stepped(self) -> bool:
        """Whether that ended a hang."""
        if self._since_s is not None:
            now_s, was_first = self._clock(), self._longest_s is None
            self._longest_s = max(self._longest_s or 0.0, now_s - self._since_s)
            self._since_s, self._looked = now_s, False
            if was_first:
                self._arm(self._patience_s)
        was_hung, self.hung_s = self.hung_s is not None, None
        return was_hung

    def rest(self) -> None:
        """Nothing is live there any more."""
        self._since_s = None
        self._disarm()

    def restart(self) -> None:
        """Another process may answer from now on."""
        self.rest()
        self._longest_s = self.hung_s = None

    @property
    def _patience_s(self) -> float:
        if self._longest_s is None:
            return FIRST_STEP_PATIENCE * self._timeout_s
        return max(self._timeout_s, SLOWEST_PATIENCE * max(self._longest_s, self._prefill_s()))

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        call_later: CallLater = self._call_later or asyncio.get_running_loop().call_later
        self._timer = call_later(delay_s, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self._since_s is not None, "the timer is off while there is no work"
        idle_s = self._clock() - self._since_s
        if idle_s < self._patience_s:
            self._arm(self._patience_s - idle_s)
        elif not self._looked:
            self._looked = True
            self._arm(SECOND_LOOK * self._timeout_s)
        else:
            self._disarm()
            self.hung_s = idle_s
            self._on_hang(idle_s)
