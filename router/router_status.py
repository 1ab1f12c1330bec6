"""What a router tells about itself: one consistent picture (`RouterStatus`) and its counters, plain and monotonic.

Filled in by `router.py`, `dispatcher.py` and `replica_view.py`; shown by `metrics.py` and `/admin/status`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.membership import ReplicaState, WorkerInfo
from protocol.messages import Load
from router.prefix_index import IndexState
from router.routed_request import Decision, Reason


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    replica_id: str
    state: ReplicaState  # as the controller sees it
    incarnation: int
    connected: bool
    index: IndexState
    num_indexed_blocks: int
    num_live_requests: int  # this router's
    prefill_tokens: int  # uncached, outstanding
    load: Load | None  # its last report
    workers: tuple[WorkerInfo, ...]
    detail: str  # why it is not connected, or the controller's own word


@dataclass(frozen=True, slots=True)
class RouterStatus:
    router_id: str
    model: str
    ready: bool
    draining: bool
    block_size: int | None
    max_model_len: int | None
    num_live_requests: int  # waiting ones included
    num_waiting_requests: int
    replicas: tuple[ReplicaStatus, ...]


@dataclass(slots=True)
class RouterCounters:
    """Totals since the router began. Tokens, never rates: whoever reads them divides."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0  # left before they had finished
    failed: int = 0  # ended by an error after they had been accepted
    overloaded: int = 0  # turned away
    moves: int = 0
    replica_losses: int = 0
    resyncs: int = 0  # snapshots forced because predictions and reports disagreed
    decisions: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    prompt_tokens: int = 0  # of requests whose first token has come and that were not moved before
    predicted_cached_tokens: int = 0  # of the same
    actual_cached_tokens: int = 0
    best_available_cached_tokens: int = 0  # the longest match on any ready replica

    def compare(self, num_prompt_tokens: int, decision: Decision, actual: int) -> None:
        """One request's first token has come, and with it what was really cached of its prompt."""
        self.prompt_tokens += num_prompt_tokens
        self.predicted_cached_tokens += decision.matched_tokens
        self.actual_cached_tokens += actual
        self.best_available_cached_tokens += decision.best_matched_tokens
