"""How far a simulation is from the real run of the same requests. Called by `trunkline simulate --fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.comparison import percentile
from simulator.exact import ExactReplicas
from simulator.fleet import Fleet
from simulator.measurement import MeasuredRequest, Measurement
from simulator.policies.policy import Policy
from simulator.service_model import ServiceModel
from simulator.simulation import Deployment, Order, Simulation

HIT_RATE = "hit rate"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is compared of a request, measured or simulated."""

    ttft_s: float
    end_to_end_s: float
    num_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Compared:
    """`error` is relative, but for shares, where it is the difference."""

    what: str
    measured: float
    simulated: float
    share: bool = False

    @property
    def error(self) -> float:
        difference = self.simulated - self.measured
        return difference if self.share else difference / self.measured


def simulated(
    measurement: Measurement,
    model: ServiceModel,
    policy: Callable[[Fleet], Policy],
    order: Order,
    seed: int = 0,
) -> list[Outcome]:
    """The same requests, in the same order, at exact replicas of the same sizes."""
    facts, length = measurement.deployment, measurement.trace_block_tokens
    exact = ExactReplicas(facts.block_size, length, facts.max_num_batched_tokens)
    num_blocks = facts.num_blocks * facts.block_size // length
    deployment = Deployment(len(facts.replicas), num_blocks, model, seed, exact)
    simulation = Simulation(measurement.trace(), deployment, policy, order)
    simulation.run()
    outcomes: dict[int, Outcome] = {}
    for sequence, ended_s in simulation.ended:
        request = sequence.request
        assert sequence.ttft_s is not None, "what has ended has had its first token"
        end_to_end_s = ended_s - request.arrival_s
        outcomes[request.index] = Outcome(
            sequence.ttft_s, end_to_end_s, request.num_tokens, sequence.cached_tokens
        )
    return [outcomes[index] for index in range(len(outcomes))]


def measured(requests: Sequence[MeasuredRequest]) -> list[Outcome]:
    return [Outcome(each.ttft_s, each.end_to_end_s, each.num_tokens, each.cached_tokens) for each in requests]


def compared(real: Sequence[Outcome], simulation: Sequence[Outcome]) -> list[Compared]:
    """Seconds and shares of the same requests."""
    figures = zip(_figures(real).items(), _figures(simulation).values(), strict=True)
    return [Compared(what, one, other, what == HIT_RATE) for (what, one), other in figures]


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    ttfts_s = sorted(each.ttft_s for each in outcomes)
    quantiles = {f"p{100 * share:g} TTFT": percentile(ttfts_s, share) for share in (0.5, 0.9, 0.99)}
    return {
        "mean TTFT": math.fsum(ttfts_s) / len(outcomes),
        **quantiles,
        "mean end to end": math.fsum(each.end_to_end_s for each in outcomes) / len(outcomes),
        HIT_RATE: sum(each.cached_tokens for each in outcomes) / sum(each.num_tokens for each in outcomes),
    }
