"""Policies that look at no prefix: the floor of every comparison, and the ceiling."""

from __future__ import annotations

import hashlib
from bisect import bisect_right

from simulator.fleet import Fleet
from simulator.policies.policy import Policy
from simulator.trace import TraceRequest

VIRTUAL_NODES = 256
LOAD_FACTOR = 1.25


class Random(Policy):
    """Any replica."""

    def choose(self, request: TraceRequest) -> int:
        return self.fleet.rng.randrange(self.fleet.num_replicas)


class RoundRobin(Policy):
    """Each replica in turn."""

    def choose(self, request: TraceRequest) -> int:
        return request.index % self.fleet.num_replicas


class LeastQueuedTokens(Policy):
    """The fewest uncached tokens sent there whose prefill has not ended; ties at random."""

    def choose(self, request: TraceRequest) -> int:
        return self.fleet.least(self.fleet.queued_tokens)


class Oracle(LeastQueuedTokens):
    """One shared cache of N times the size, and the least queued tokens: nothing is ever on the wrong replica."""

    shares_cache = True


class SessionHash(Policy):
    """KubeAI: a ring of 256 virtual nodes a replica, entered at the hash of the prompt's first characters; from
    there on the first replica with at most 1.25 times the mean of the requests in flight, which counts the new one.

    The first characters are those of the first block here: whoever shares a system prompt shares the place.
    """

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._ring = sorted(
            (_place(f"{replica}/{node}"), replica)
            for replica in range(fleet.num_replicas)
            for node in range(VIRTUAL_NODES)
        )

    def choose(self, request: TraceRequest) -> int:
        fleet, ring = self.fleet, self._ring
        most = LOAD_FACTOR * (sum(fleet.in_flight) + 1) / fleet.num_replicas
        start = bisect_right(ring, (_place(f"block {request.blocks[0]}"), fleet.num_replicas))
        while fleet.in_flight[ring[start % len(ring)][1]] > most:  # the least loaded is never above the mean
            start += 1
        return ring[start % len(ring)][1]


def _place(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
