"""The running sums behind a replica's `Load`, so that no step counts its queue. Kept by `scheduler.py`."""

from __future__ import annotations

from workers.scheduling.live_request import LiveRequest
from workers.scheduling.sequence import Sequence


class LoadMeter:
    __slots__ = ("backlog_tokens", "num_preemptions", "num_running_requests")

    def __init__(self) -> None:
        self.backlog_tokens = 0  # still to be prefilled, as far as known not cached
        self.num_running_requests = 0  # with at least one row
        self.num_preemptions = 0  # since the start

    def set_backlog(self, sequence: Sequence, num_tokens: int) -> None:
        self.backlog_tokens += num_tokens - sequence.backlog_tokens
        sequence.backlog_tokens = num_tokens

    def row_taken(self, live: LiveRequest) -> None:
        self.num_running_requests += live.num_rows == 0
        live.num_rows += 1

    def row_given_back(self, live: LiveRequest) -> None:
        live.num_rows -= 1
        self.num_running_requests -= live.num_rows == 0
