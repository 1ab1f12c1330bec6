"""Prompts kept in the pool until each of a request's `n` sequences has started on them. Owned by `scheduler.py`."""

from __future__ import annotations

from workers.kv.block import Block
from workers.kv.kv_cache import KvCache
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.sequence import Sequence


class PromptHolds:
    """A hold is a favour: whoever finds it gone computes the prompt, or finds it in the prefix cache."""

    __slots__ = ("_holders", "_kv")

    def __init__(self, kv: KvCache) -> None:
        self._kv = kv
        self._holders: dict[int, LiveRequest] = {}  # by arrival

    def open(self, live: LiveRequest, computed: Sequence) -> None:
        assert live.hold is None, "a request's prompt is held once"
        live.hold = self._kv.hold(computed.table, live.request.num_prompt_tokens)
        self._holders[live.arrival] = live

    def close_if_unneeded(self, live: LiveRequest) -> None:
        if live.hold is not None and all(sequence.started for sequence in live.sequences):
            self._close(live)

    def close_all(self) -> bool:
        """Under pressure, before anybody is preempted. True when there was one."""
        holders = list(self._holders.values())
        for live in holders:
            self._close(live)
        return bool(holders)

    def blocks(self) -> list[list[Block]]:
        return [live.hold for live in self._holders.values() if live.hold is not None]

    def _close(self, live: LiveRequest) -> None:
        assert live.hold is not None, "nothing is held"
        self._kv.pool.release(live.hold)
        live.hold = None
        del self._holders[live.arrival]
