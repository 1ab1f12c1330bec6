"""Policies that send a request where its prefix is, and look at load only when that fails.

Those with an approximate index believe that whatever they sent to a replica is there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from simulator.fleet import Fleet
from simulator.holders import Holders
from simulator.policies.policy import Policy
from simulator.trace import BLOCK_TOKENS, TraceRequest

CHARACTERS_PER_TOKEN = 4
SGLANG_TREE_BLOCKS = 2**26 // CHARACTERS_PER_TOKEN // BLOCK_TOKENS  # of each replica
UNBOUNDED = 1 << 60


class DispatchIndex:
    """Per replica the blocks of what was sent there, the least recently sent forgotten first."""

    def __init__(self, num_replicas: int, capacity: int) -> None:
        self._capacity = capacity  # in blocks of each replica
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(num_replicas)]
        self._holders = Holders(num_replicas)

    def add(self, blocks: Sequence[int], replica: int) -> None:
        sent = self._sent[replica]
        for block in reversed(blocks):
            if block in sent:
                sent.move_to_end(block)
            else:
                sent[block] = None
                self._holders.add(block, replica)
        while len(sent) > self._capacity:
            block, _ = sent.popitem(last=False)
            self._holders.discard(block, replica)

    def match(self, blocks: Sequence[int]) -> list[int]:
        return self._holders.match(blocks)

    def sizes(self) -> list[int]:
        return [len(sent) for sent in self._sent]


class LongestPrefix(Policy):
    """The most cached tokens, whatever the load; ties at random."""

    def choose(self, request: TraceRequest) -> int:
        return self.fleet.least([-depth for depth in self.fleet.match(request)])


class SglangRouter(Policy):
    """sglang-router 0.3 `cache_aware`, defaults of its command line. Load is the number of requests in flight.

    If max - min > 64 and max > 1.5 * min, the least load, for everyone. Else the tenants of the tree's deepest
    match, one of them at random, if it covers more than 0.3 of the prompt; else the least load.
    """

    MATCH_THRESHOLD = 0.3
    BALANCE_ABSOLUTE = 64
    BALANCE_RELATIVE = 1.5

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._tree = DispatchIndex(fleet.num_replicas, SGLANG_TREE_BLOCKS)

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        most, least = max(fleet.in_flight), min(fleet.in_flight)
        if most - least > self.BALANCE_ABSOLUTE and most > self.BALANCE_RELATIVE * least:
            return fleet.least(fleet.in_flight)
        depths = self._tree.match(request.blocks)
        deepest = max(depths)
        if deepest > self.MATCH_THRESHOLD * len(request.blocks):
            return fleet.rng.choice(_holding(depths, deepest))
        return fleet.least(fleet.in_flight)

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        self._tree.add(request.blocks, replica)


class Smg(Policy):
    """smg 1.13 `cache_aware`: of at most eight tenants of the deepest match the least loaded, if the match covers
    more than 0.3 of the prompt; but a load above 1.5 times the mean and 64 more than it sends the request to the
    least loaded of all, which thereby becomes a tenant. Load is the number of requests in flight.
    """

    MATCH_THRESHOLD = 0.3
    BALANCE_ABSOLUTE = 64
    BALANCE_RELATIVE = 1.5
    MOST_TENANTS = 8

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._tree = DispatchIndex(fleet.num_replicas, SGLANG_TREE_BLOCKS)

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        depths = self._tree.match(request.blocks)
        deepest = max(depths)
        if deepest <= self.MATCH_THRESHOLD * len(request.blocks):
            return fleet.least(fleet.in_flight)
        tenant = fleet.least(fleet.in_flight, _holding(depths, deepest)[: self.MOST_TENANTS])
        load, mean = fleet.in_flight[tenant], sum(fleet.in_flight) / fleet.num_replicas
        if load > self.BALANCE_RELATIVE * mean and load > mean + self.BALANCE_ABSOLUTE:
            return fleet.least(fleet.in_flight)
        return tenant

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        self._tree.add(request.blocks, replica)


class RayPrefixCacheAffinity(Policy):
    """Ray's PrefixCacheAffinityRouter, defaults: no limit to the imbalance, nothing forgotten.

    A match below 0.1 of the prompt: the smallest tenant of the tree. Else two of the match's tenants at random, and
    of these the one with fewer requests in flight.
    """

    MATCH_THRESHOLD = 0.1

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._tree = DispatchIndex(fleet.num_replicas, UNBOUNDED)

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        depths = self._tree.match(request.blocks)
        deepest = max(depths)
        if deepest < self.MATCH_THRESHOLD * len(request.blocks):
            return fleet.least(self._tree.sizes())
        tenants = _holding(depths, deepest)
        drawn = tenants if len(tenants) <= 2 else fleet.rng.sample(tenants, 2)
        return fleet.least(fleet.in_flight, drawn)

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        self._tree.add(request.blocks, replica)


def _holding(depths: Sequence[int], depth: int) -> list[int]:
    return [replica for replica, reached in enumerate(depths) if reached == depth]
