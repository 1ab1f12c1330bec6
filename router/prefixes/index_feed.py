"""One connection's way into the prefix index: which snapshot chunks and events count, and in which order.

A snapshot is true for one step and arrives in chunks between frames. Events that arrive meanwhile wait; those of
later steps than the snapshot's follow it, the others are in it already.
"""

from __future__ import annotations

from protocol.errors import ProtocolError
from protocol.events import KvEvent
from protocol.messages import SnapshotChunk, StepFrame
from router.prefixes.prefix_index import PrefixIndex

MAX_WAITING_FRAMES = 65_536  # minutes of steps: a snapshot that takes longer will not come


class IndexFeed:
    """Made per connection by `replica_view.py`; the index must have the replica connected."""

    def __init__(self, index: PrefixIndex, replica: str) -> None:
        self._index = index
        self._replica = replica
        self._synced = False  # the snapshot has ended
        self._begun = False  # it has begun, and not ended
        self._waiting: list[tuple[int, tuple[KvEvent, ...]]] = []
        self.contradicted = False  # an event since the snapshot cannot be: the index has drifted

    def restart(self) -> None:
        """Count nothing until a new snapshot has come; whoever calls this asks the replica for one."""
        self._index.blind(self._replica)
        self._synced = self._begun = self.contradicted = False
        self._waiting.clear()

    def frame(self, frame: StepFrame) -> None:
        """Raises ProtocolError when the snapshot is far too late: only a new connection helps."""
        if self._synced:
            self._apply(frame.events)
        elif frame.events:
            self._waiting.append((frame.step, frame.events))
            if len(self._waiting) > MAX_WAITING_FRAMES:
                raise ProtocolError("the replica sends no snapshot")

    def chunk(self, chunk: SnapshotChunk) -> None:
        if not self._begun:
            self._begin()
        self._index.add_to_snapshot(self._replica, chunk.digests, chunk.medium)
        if chunk.last:
            self._end(chunk.step)

    def _begin(self) -> None:
        self._index.begin_snapshot(self._replica)
        self._begun, self._synced = True, False

    def _end(self, step: int) -> None:
        self._index.end_snapshot(self._replica)
        self._begun, self._synced = False, True
        waiting, self._waiting = self._waiting, []
        for after, events in waiting:
            if after > step:
                self._apply(events)

    def _apply(self, events: tuple[KvEvent, ...]) -> None:
        for event in events:
            self.contradicted |= not self._index.apply(self._replica, event)
