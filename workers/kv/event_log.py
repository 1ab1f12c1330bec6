"""The KV events since the last step, in order, with neighbours that say the same merged into one.

Written by `prefix_cache.py`, emptied once a step by the engine.
"""

from __future__ import annotations

from protocol.events import GPU, Cleared, KvEvent, Removed, Stored


class EventLog:
    """The last run is kept open: a prompt's blocks become one `Stored`, an eviction's one `Removed`."""

    __slots__ = ("_digests", "_events", "_medium", "_parent", "_storing")

    def __init__(self, medium: str = GPU) -> None:
        self._medium = medium
        self._events: list[KvEvent] = []
        self._digests: list[bytes] = []  # of the open run
        self._storing = False
        self._parent: bytes | None = None

    def stored(self, digest: bytes, parent: bytes | None) -> None:
        if not (self._storing and self._digests and self._digests[-1] == parent):
            self._close_run()
            self._storing, self._parent = True, parent
        self._digests.append(digest)

    def removed(self, digest: bytes) -> None:
        if self._storing:
            self._close_run()
            self._storing = False
        self._digests.append(digest)

    def cleared(self) -> None:
        self._close_run()
        self._events.append(Cleared())

    def take(self) -> tuple[KvEvent, ...]:
        self._close_run()
        events = tuple(self._events)
        self._events.clear()
        return events

    def _close_run(self) -> None:
        if not self._digests:
            return
        joined = b"".join(self._digests)
        self._digests.clear()
        if self._storing:
            self._events.append(Stored(joined, self._parent, self._medium))
        else:
            self._events.append(Removed(joined, self._medium))
