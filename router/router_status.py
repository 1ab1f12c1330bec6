"""What a router tells about itself: one consistent picture (`ServiceStatus`) and its counters, plain and monotonic.

Filled in by `service.py`, `router.py`, `dispatcher.py` and `replica_view.py`; shown by `metrics.py` and `/status`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protocol.membership import DeploymentView, ReplicaState, ServedModel, WorkerInfo
from protocol.messages import Load
from router.prefixes.prefix_index import IndexState
from router.requests.routed_request import Decision, Reason


class Refusal(enum.Enum):
    """Which bound was reached when a request was turned away."""

    QUEUED_TOKENS = "queued_tokens"
    LIVE_REQUESTS = "live_requests"
    WAITING_REQUESTS = "waiting_requests"  # while no replica is ready


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
    detail: str  # why it is not connected, that it hangs, or the controller's own word
    accepting: bool = True  # new requests may go there


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """Of the core that routes one version of one model."""

    router_id: str
    model: str
    ready: bool
    draining: bool
    block_size: int | None
    max_model_len: int | None
    num_live_requests: int  # waiting ones included
    num_waiting_requests: int
    replicas: tuple[ReplicaStatus, ...]
    num_queued_tokens: int = 0  # uncached ones of prompts that this router took and that are not computed yet
    max_queued_tokens: int | None = None  # beyond it requests are refused; None: no replica, no such bound
    num_index_bytes: int = 0  # that the prefix index takes


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version of one model at this router."""

    served: ServedModel
    router: RouterStatus


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A router whole: every model that it serves."""

    router_id: str
    ready: bool
    draining: bool
    models: tuple[ModelStatus, ...]
    deployment: DeploymentView | None = None  # as the controller told last
    missing: tuple[
        tuple[str, str], ...
    ] = ()  # models that cannot be asked for here yet by their names, and why


@dataclass(slots=True)
class RouterCounters:
    """Totals since the router began. Tokens, never rates: whoever reads them divides."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0  # left before they had finished
    failed: int = 0  # ended by an error after they had been accepted
    refused: dict[Refusal, int] = field(default_factory=lambda: dict.fromkeys(Refusal, 0))
    moves: int = 0
    replica_losses: int = 0  # not those on purpose
    hangs: int = 0  # replicas that had work and took no step for too long
    fatal_requests: int = 0  # stopped because one replica after the other died while it ran them
    resyncs: int = 0  # snapshots forced because predictions and reports disagreed
    decisions: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    prompt_tokens: int = 0  # of requests whose first token has come and that were not moved before
    predicted_cached_tokens: int = 0  # of the same
    actual_cached_tokens: int = 0
    best_available_cached_tokens: int = 0  # the longest match on any ready replica
    regret_tokens: int = 0  # of the same requests, each one's best available less actual where that is more
    mispredicted_tokens: int = (
        0  # of the same, too many and too few alike: they do not make up for each other
    )

    @property
    def overloaded(self) -> int:
        """Turned away, for whatever reason."""
        return sum(self.refused.values())

    def compare(self, num_prompt_tokens: int, decision: Decision, actual: int) -> None:
        """One request's first token has come, and with it what was really cached of its prompt."""
        self.prompt_tokens += num_prompt_tokens
        self.predicted_cached_tokens += decision.matched_tokens
        self.actual_cached_tokens += actual
        self.best_available_cached_tokens += decision.best_matched_tokens
        self.regret_tokens += max(0, decision.best_matched_tokens - actual)
        self.mispredicted_tokens += abs(decision.matched_tokens - actual)
