"""Whether one replica's reports bear out what the index predicted of it. Kept by `replica_view.py`."""

from __future__ import annotations

from collections import deque

WINDOW = 32
TOLERATED = 7  # evictions between dispatch and admission explain a few disagreements, not a quarter of them


class Agreement:
    """Of the last 32 predictions, 8 or more were wrong: the index has drifted. At most once an interval."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._latest: deque[bool] = deque(maxlen=WINDOW)
        self._quiet_until: float | None = None

    def drifted(self, predicted: int, actual: int, now: float) -> bool:
        """Note one pair of cached-token counts; True: a new snapshot is due, and counting begins anew."""
        self._latest.append(predicted != actual)
        if sum(self._latest) <= TOLERATED or (self._quiet_until is not None and now < self._quiet_until):
            return False
        self._latest.clear()
        self._quiet_until = now + self._interval_s
        return True
