"""Traces in which one tenant floods the replicas while another goes on as always. Made for tests and benchmarks.

The light tenant is an assistant: one long system prompt before questions of its own. The heavy one sends documents
that nobody has sent before. Knows nothing of replicas but how fast they prefill.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from simulator.service_model import ServiceModel
from simulator.simulation import DEFAULT_MODEL, Simulation
from simulator.trace import BLOCK_TOKENS, TraceRequest

LIGHT, HEAVY = "light", "heavy"
_SYSTEM_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Flood:
    """`overload`: the heavy tenant's prefill seconds a second, as a multiple of what all replicas have."""

    num_replicas: int
    overload: float = 4.0
    lasts_s: float = 60.0
    light_share: float = 0.1  # the light tenant's prefill seconds, likewise
    output_tokens: int = 200  # of each request, on average
    seed: int = 0
    model: ServiceModel = DEFAULT_MODEL

    def light(self) -> list[TraceRequest]:
        rng = random.Random(self.seed)
        head = tuple(range(_SYSTEM_BLOCKS))
        return self._arrivals(rng, LIGHT, self.light_share, head, most_blocks=12)

    def heavy(self) -> list[TraceRequest]:
        rng = random.Random(self.seed + 1)
        return self._arrivals(rng, HEAVY, self.overload, (), most_blocks=40)

    def _arrivals(
        self, rng: random.Random, tenant: str, load: float, head: tuple[int, ...], most_blocks: int
    ) -> list[TraceRequest]:
        """As a Poisson process; blocks behind the head are nobody else's."""
        mean_s = self.model.prefill_time_s(len(head) * BLOCK_TOKENS, (most_blocks + 1) * BLOCK_TOKENS // 2)
        rate = load * self.num_replicas / mean_s
        requests: list[TraceRequest] = []
        arrival_s, next_block = rng.expovariate(rate), 1000 if tenant == LIGHT else 10_000_000
        while arrival_s < self.lasts_s:
            own = tuple(range(next_block, next_block + rng.randint(1, most_blocks)))
            next_block += len(own)
            num_tokens = (len(head) + len(own)) * BLOCK_TOKENS - rng.randrange(BLOCK_TOKENS)
            num_output_tokens = rng.randint(1, 2 * self.output_tokens)
            requests.append(
                TraceRequest(len(requests), arrival_s, num_tokens, num_output_tokens, head + own, tenant)
            )
            arrival_s += rng.expovariate(rate)
        return requests


def together(*traces: Iterable[TraceRequest]) -> list[TraceRequest]:
    """In order of arrival, numbered anew."""
    requests = sorted((each for trace in traces for each in trace), key=lambda each: each.arrival_s)
    return [replace(request, index=index) for index, request in enumerate(requests)]


def of_one_tenant(requests: Iterable[TraceRequest]) -> list[TraceRequest]:
    """The same as if nobody knew whose they are."""
    return [replace(request, tenant="") for request in requests]


def ttfts_s(simulation: Simulation, requests: Sequence[TraceRequest]) -> list[float]:
    """Of those with these blocks and arrivals, in a simulation that has run; the shortest first."""
    wanted = {(request.arrival_s, request.blocks) for request in requests}
    found = [
        sequence.ttft_s
        for sequence, _ in simulation.ended
        if (sequence.request.arrival_s, sequence.request.blocks) in wanted
    ]
    return sorted(ttft_s for ttft_s in found if ttft_s is not None)
