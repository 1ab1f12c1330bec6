"""A request as the router's core sees it: token ids, not text. Made by `api.py`, taken by `router.py`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    request_id: str  # unique in the cluster
    token_ids: bytes = field(repr=False)  # packed int32
    sampling: SamplingParams  # seed and max_tokens filled in
    isolation: bytes = b""  # block_hash.isolation_key
    affinity: str | None = None  # a session or prompt_cache_key: breaks ties
    priority: int = 0  # lower is earlier
    deadline_s: float | None = None  # from now
    tenant: bytes = b""  # between whom replicas are shared fairly: an opaque id, never a key
    weight: float = 1.0  # the tenant's share against others' of 1

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.token_ids) // TOKEN_BYTES


class Reason(enum.Enum):
    """Why a replica was chosen; shown in the response header `x-trunkline-route-reason`."""

    PREFIX = "prefix"  # it holds the longest match, and that was worth it
    BALANCED = "balanced"  # computing more of it here is cheaper than waiting for a holder
    COLD = "cold"  # nobody holds any of it: the shortest wait
    AFFINITY = "affinity"  # several were as good; the session's or cache key's own one of them
    ONLY = "only"  # there was no choice
    FALLBACK = "fallback"  # costs could not be computed: matched share less load


@dataclass(frozen=True, slots=True)
class Decision:
    replica: str
    matched_tokens: int  # predicted to be cached there
    cost: float  # what the policy minimised: seconds, except for FALLBACK
    reason: Reason
    best_matched_tokens: int = 0  # the longest match of any ready replica
