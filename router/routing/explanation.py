"""Why a request would go where it would go. Made by `dispatcher.py` for `Router.explain`, shown over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.prefixes.prefix_index import IndexState
from router.requests.routed_request import Decision
from router.routing.costs import CostTerms


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one moment; replicas that take no new requests are left out, and ties may fall otherwise the next time."""

    num_prompt_tokens: int
    decision: Decision
    costs: tuple[CostTerms, ...]  # the cheapest first
    indexes: Mapping[str, IndexState]  # by replica: a BLIND one's match is a guess
    price: float  # of a second copy
    utilization: float  # prefill seconds dispatched a second and replica
    backlog_s: float  # unfinished prefill of a replica, on average
