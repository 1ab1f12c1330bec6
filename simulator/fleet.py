"""What one router in front of the simulated replicas can know. Read by its policy.

Counts are of what this router sent, from the dispatch on; what others sent shows in the loads that replicas report.
Changed by `simulation.py` alone; knows no policy and no order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from protocol.events import KvEvent
from protocol.messages import Load
from simulator.block_cache import BlockCache
from simulator.holders import Holders
from simulator.service_model import ServiceModel
from simulator.simulated_replica import SimulatedReplica
from simulator.trace import BLOCK_TOKENS, TraceRequest


class Fleet:
    """All lists are by replica."""

    def __init__(
        self,
        num_replicas: int,
        cache_blocks: int,
        model: ServiceModel,
        seed: int,
        cached: Holders | None = None,
    ) -> None:
        self.num_replicas = num_replicas
        self.cache_blocks = cache_blocks  # of each
        self.model = model  # of a replica that nothing slows
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.cached = (
            Holders(num_replicas) if cached is None else cached
        )  # all routers' knowledge is the same
        self.loads: list[Load | None] = [None] * num_replicas  # as reported last
        self.num_submits = [0] * num_replicas  # of this router's dispatches, those that the loads contain
        self.events: list[Sequence[KvEvent]] = [()] * num_replicas  # of exact replicas, with that report
        self.in_flight = [0] * num_replicas  # requests sent there that have not ended
        self.prefilling = [0] * num_replicas  # of these, those whose prefill has not ended
        self.queued_tokens = [0] * num_replicas  # uncached, of these, as predicted when each was sent
        self.active_blocks = [0] * num_replicas  # of the prompts and outputs of those in flight
        self.replicas: Sequence[SimulatedReplica] = ()
        self._uncached: dict[int, int] = {}  # request in prefill -> its share of queued_tokens
        self._matched: tuple[int, list[int]] = (-1, [])  # the request that was matched last

    def caches(self, shared: bool) -> list[BlockCache]:
        """One for each replica, or one of all their sizes for all."""
        everybody = range(self.num_replicas)
        if shared:
            cache = BlockCache(self.cache_blocks * self.num_replicas, self.cached, everybody)
            return [cache] * self.num_replicas
        return [BlockCache(self.cache_blocks, self.cached, (replica,)) for replica in everybody]

    def match(self, request: TraceRequest) -> list[int]:
        """Of the request that is being routed: its cached blocks."""
        if self._matched[0] != request.index:
            self._matched = request.index, self.cached.match(request.blocks)
        return self._matched[1]

    def uncached_tokens(self, request: TraceRequest) -> list[int]:
        return [uncached(request, depth) for depth in self.match(request)]

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        num_uncached = uncached(request, self.match(request)[replica])
        self._uncached[request.index] = num_uncached
        self.queued_tokens[replica] += num_uncached
        self.in_flight[replica] += 1
        self.prefilling[replica] += 1
        self.active_blocks[replica] += num_blocks(request)

    def prefilled(self, request: TraceRequest, replica: int) -> None:
        self.queued_tokens[replica] -= self._uncached.pop(request.index)
        self.prefilling[replica] -= 1

    def ended(self, request: TraceRequest, replica: int) -> None:
        self.in_flight[replica] -= 1
        self.active_blocks[replica] -= num_blocks(request)

    def least(self, values: Sequence[float], among: Sequence[int] | None = None) -> int:
        """The replica with the lowest value, ties at random."""
        chosen = range(self.num_replicas) if among is None else among
        lowest = min([values[replica] for replica in chosen])
        ties = [replica for replica in chosen if values[replica] == lowest]
        return ties[0] if len(ties) == 1 else self.rng.choice(ties)


def uncached(request: TraceRequest, depth: int) -> int:
    """Tokens to prefill behind `depth` cached blocks: at least the last one."""
    return max(1, request.num_tokens - depth * BLOCK_TOKENS)


def num_blocks(request: TraceRequest) -> int:
    return -(-(request.num_tokens + request.num_output_tokens) // BLOCK_TOKENS)
