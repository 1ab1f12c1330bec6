"""Runs policies under orders over one trace, and sums each run up in a row. Called by the command line.

Also answers how many replicas a trace needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from protocol.errors import InvalidRequest
from simulator.fleet import Fleet
from simulator.policies.policy import Policy
from simulator.simulation import Deployment, Order, Simulation
from simulator.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Row:
    """One simulation. TTFT: from the arrival to the end of the prefill."""

    policy: str
    order: str
    replicas: int
    requests: int
    mean_ttft_s: float
    p50_ttft_s: float
    p99_ttft_s: float
    max_ttft_s: float
    mean_end_to_end_s: float  # from the arrival to the last token
    hit_rate: float  # prompt tokens that were cached when their prefill began
    busy: float  # share of the replicas' time, up to the last first token, with a prefill running
    busy_imbalance: float  # the busiest replica's to the mean


def simulate(
    requests: Sequence[TraceRequest],
    deployment: Deployment,
    policy: tuple[str, Callable[[Fleet], Policy]],
    order: tuple[str, Order],
) -> Row:
    simulation = Simulation(requests, deployment, policy[1], order[1])
    simulation.run()
    return summary(simulation, policy[0], order[0])


def summary(simulation: Simulation, policy: str, order: str) -> Row:
    """Of a simulation that has run."""
    ttfts_s, num_cached, num_tokens, last_s, end_to_end_s = [], 0, 0, 0.0, 0.0
    for sequence, ended_s in simulation.ended:
        request = sequence.request
        assert sequence.ttft_s is not None, "what has ended has had its first token"
        ttfts_s.append(sequence.ttft_s)
        num_cached += sequence.cached_tokens
        num_tokens += request.num_tokens
        last_s = max(last_s, request.arrival_s + sequence.ttft_s)
        end_to_end_s += ended_s - request.arrival_s
    ttfts_s.sort()
    busy_s = [replica.busy_s for replica in simulation.replicas]
    return Row(
        policy=policy,
        order=order,
        replicas=len(busy_s),
        requests=len(ttfts_s),
        mean_ttft_s=math.fsum(ttfts_s) / len(ttfts_s),
        p50_ttft_s=percentile(ttfts_s, 0.50),
        p99_ttft_s=percentile(ttfts_s, 0.99),
        max_ttft_s=ttfts_s[-1],
        mean_end_to_end_s=end_to_end_s / len(ttfts_s),
        hit_rate=num_cached / num_tokens,
        busy=sum(busy_s) / (len(busy_s) * last_s),
        busy_imbalance=max(busy_s) * len(busy_s) / sum(busy_s),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def fewest_replicas(
    requests: Sequence[TraceRequest],
    deployment: Deployment,
    policy: tuple[str, Callable[[Fleet], Policy]],
    order: tuple[str, Order],
    p99_ttft_s: float,
) -> Row:
    """The simulation of as few replicas as keep the p99 of the TTFT at this or below, at most `deployment`'s.

    Doubles until it is enough, then halves the gap: a fleet larger than one that is enough counts as enough. Raises
    InvalidRequest if even the most are too few.
    """

    most_late = len(requests) - math.ceil(0.99 * len(requests))

    def enough_with(num_replicas: int) -> Row | None:
        fleet = replace(deployment, num_replicas=num_replicas)
        simulation = Simulation(requests, fleet, policy[1], order[1])
        return summary(simulation, policy[0], order[0]) if simulation.keeps(p99_ttft_s, most_late) else None

    too_few, enough = 0, 1
    row = enough_with(enough)
    while row is None:
        if enough == deployment.num_replicas:
            raise InvalidRequest(
                f"with {enough} replicas the p99 TTFT under {policy[0]} is above {p99_ttft_s:g} s: allow more replicas "
                "than that with --replicas, or more time; the longest prompts may take longer alone",
                param="--slo-ttft-p99",
            )
        too_few, enough = enough, min(2 * enough, deployment.num_replicas)
        row = enough_with(enough)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        candidate = enough_with(middle)
        if candidate is None:
            too_few = middle
        else:
            enough, row = middle, candidate
    return row
