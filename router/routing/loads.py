"""What a decision is made from: the request, and the replicas that may take it, column by column.

Filled in by `prefill_board.py` and `weighing.py`, read by `costs.py` and `policy.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class UnfinishedPrefill:
    """Sent to a replica, and its first token has not come."""

    remaining_s: float  # of prefill there
    dispatched_s: float  # by the clock of `ReplicaColumns.now_s`
    priority: int = field(default=0, kw_only=True)  # its class: lower is earlier


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    num_prompt_tokens: int
    matched_tokens: Sequence[int]  # [replicas]: of the prompt, predicted to be cached there
    affinity: str | None = None  # breaks ties
    priority: int = 0  # its class: lower is earlier


@dataclass(frozen=True, slots=True)
class ReplicaColumns:
    """The replicas that may take a request, one place each in every column. Read, never changed or kept.

    The first four say how fast each is, `Speeds` column by column.
    """

    replicas: Sequence[str]
    prefill_s: Sequence[float]
    prefill_s_per_token: Sequence[float]
    prefill_s_per_pair: Sequence[float]
    decode_s: Sequence[float]
    unfinished: Sequence[Collection[UnfinishedPrefill]]
    others_prefill_s: Sequence[
        float
    ]  # of unfinished prefills that are not in `unfinished`: other routers sent them
    num_others: Sequence[int]  # of these, about; 0: they are ahead of everything
    free_tokens: Sequence[int]  # room for more of them before anything cached is pushed out
    num_in_flight: Sequence[int]  # sequences there, whoever sent them
    utilization: float  # prefill seconds dispatched a second and replica
    backlog_s: float  # unfinished prefill of a replica, on average
    now_s: float
