"""Which replica takes a request: a pure function of matches and loads. Called by `placer.py` and by simulations.

Knows nothing of the index, the sockets or the clock: whatever it needs is in the request, the columns of loads and
the random source. What a replica costs, and why, stands in `costs.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from router.requests.routed_request import Decision, Reason
from router.routing.costs import cheapest
from router.routing.loads import ReplicaColumns, RoutingRequest


def choose(request: RoutingRequest, loads: ReplicaColumns, rng: random.Random) -> Decision:
    """The rules, in order:

    1. One candidate takes the request: ONLY.
    2. The lowest cost: PREFIX if it holds the longest match, BALANCED if others hold more, COLD if nobody holds any.
    3. Equal costs: the affinity's own choice among them, AFFINITY; without an affinity at random, reason as in 2.
    4. Costs that cannot be computed (a speed is no number): the largest matched share less load, FALLBACK.
    """
    assert loads.replicas, "choose needs at least one candidate"
    best_match = max(request.matched_tokens)
    cost, ties = cheapest(request, best_match, loads)
    if len(loads.replicas) == 1:
        place, reason = 0, Reason.ONLY
    elif not ties:
        cost, ties = _fallback(request, loads)
        place, reason = _pick(ties, loads, rng, request.affinity), Reason.FALLBACK
    else:
        place = _pick(ties, loads, rng, request.affinity)
        by_affinity = request.affinity is not None and len(ties) > 1
        reason = Reason.AFFINITY if by_affinity else _reason(request.matched_tokens[place], best_match)
    return Decision(loads.replicas[place], request.matched_tokens[place], cost, reason, best_match)


def _fallback(request: RoutingRequest, loads: ReplicaColumns) -> tuple[float, list[int]]:
    """Matched share of the prompt less the load's excess over the mean: two numbers without a unit."""
    mean = sum(loads.num_in_flight) / len(loads.replicas)
    costs = [
        (num_in_flight - mean) / max(1.0, mean) - matched / max(1, request.num_prompt_tokens)
        for matched, num_in_flight in zip(request.matched_tokens, loads.num_in_flight, strict=True)
    ]
    best = min(costs)
    return best, [place for place, cost in enumerate(costs) if cost == best]


def _pick(ties: Sequence[int], loads: ReplicaColumns, rng: random.Random, affinity: str | None) -> int:
    if len(ties) == 1:
        return ties[0]
    if affinity is None:
        return rng.choice(ties)
    return max(ties, key=lambda place: _rendezvous(affinity, loads.replicas[place]))


def _rendezvous(affinity: str, replica: str) -> bytes:
    """A hash that every router agrees on, and that moves few sessions when replicas come and go."""
    return hashlib.blake2b(f"{affinity}\0{replica}".encode(), digest_size=8).digest()


def _reason(matched: int, best_match: int) -> Reason:
    if best_match == 0:
        return Reason.COLD
    return Reason.PREFIX if matched == best_match else Reason.BALANCED
