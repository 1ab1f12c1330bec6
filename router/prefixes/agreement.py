"""Whether one replica's reports bear out what the index says of it. Kept by `replica_view.py`."""

from __future__ import annotations

from collections import deque

WINDOW = 32
TOLERATED = (
    7  # evictions between dispatch and admission explain a few promises not kept, not a quarter of them
)


class Agreement:
    """Two ways to see drift: something that cannot be, or 8 broken promises among the last 32. Once an interval."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._broken: deque[bool] = deque(maxlen=WINDOW)
        self._quiet_until: float | None = None

    def drifted(self, predicted: int, actual: int, impossible: bool, now: float) -> bool:
        """Note one pair of cached-token counts; True: a new snapshot is due, and counting begins anew.

        More than predicted is no broken promise: another router's request may have stored it meanwhile. If the index
        does not know of that by now either, it is `impossible`, as is an event that contradicts it.
        """
        self._broken.append(predicted > actual)
        if not impossible and sum(self._broken) <= TOLERATED:
            return False
        if self._quiet_until is not None and now < self._quiet_until:
            return False
        self._broken.clear()
        self._quiet_until = now + self._interval_s
        return True
