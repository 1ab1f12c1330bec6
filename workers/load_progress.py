"""How much of a model is loaded, for whoever waits for it: the loading thread updates, other threads await the news."""

from __future__ import annotations

import threading

STEP_PERCENT = 10  # less is no news


class LoadProgress:
    def __init__(self) -> None:
        self._percent = 0
        self._changed = threading.Condition()

    def update(self, done: int, total: int) -> None:
        """So many of all tensors are loaded."""
        percent = 100 * done // max(total, 1)
        if percent >= 100 or percent // STEP_PERCENT > self._percent // STEP_PERCENT:
            self._set(percent)

    def finish(self) -> None:
        """Nothing more will come, whether or not all was loaded."""
        self._set(100)

    def beyond(self, percent: int) -> int:
        """Wait until more than `percent` is loaded; how much it is then. 100 is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._percent > percent or self._percent >= 100)
            return self._percent

    def _set(self, percent: int) -> None:
        with self._changed:
            self._percent = percent
            self._changed.notify_all()
