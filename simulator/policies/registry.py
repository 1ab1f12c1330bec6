"""Policies and admission orders by the names that the command line takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from protocol.errors import InvalidRequest
from simulator.fleet import Fleet
from simulator.policies import by_cost, by_load, by_prefix, ours
from simulator.policies.policy import Policy
from simulator.simulated_replica import NEVER
from simulator.simulation import Order
from workers.scheduling.admission_orders import FirstComeFirstServed, LongestMatchFirst, ResponseRatio
from workers.scheduling.waiting_line import SLICE_S

T = TypeVar("T")

POLICIES: Mapping[str, Callable[[Fleet], Policy]] = {
    "random": by_load.Random,
    "round-robin": by_load.RoundRobin,
    "least-tokens": by_load.LeastQueuedTokens,
    "session-hash": by_load.SessionHash,
    "longest-prefix": by_prefix.LongestPrefix,
    "sglang": by_prefix.SglangRouter,
    "smg": by_prefix.Smg,
    "ray": by_prefix.RayPrefixCacheAffinity,
    "llm-d": by_cost.LlmD,
    "dynamo": by_cost.Dynamo,
    "preble": by_cost.Preble,
    "lmetric": by_cost.LMetric,
    "trunkline": ours.Trunkline,
    "oracle": by_load.Oracle,
    "oracle-trunkline": ours.SharedTrunkline,
}

OUR_ORDER = "response-ratio"
ORDERS: Mapping[str, Order] = {
    "first-come": Order(FirstComeFirstServed, NEVER),
    "longest-match": Order(LongestMatchFirst, NEVER),
    "response-ratio-whole": Order(ResponseRatio, NEVER),  # without slices
    OUR_ORDER: Order(ResponseRatio, SLICE_S),
}


def chosen(name: str, known: Mapping[str, T], option: str) -> Sequence[tuple[str, T]]:
    """One of `known` by its name, or all. Raises InvalidRequest with a sentence."""
    if name == "all":
        return list(known.items())
    if name not in known:
        raise InvalidRequest(f"{option} must be all or one of {', '.join(known)}, not {name!r}", param=option)
    return [(name, known[name])]
