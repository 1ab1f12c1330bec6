"""Policies that weigh the match against the load in one number."""

from __future__ import annotations

from collections import deque

from simulator.fleet import Fleet
from simulator.policies.by_prefix import DispatchIndex
from simulator.policies.policy import Policy
from simulator.trace import BLOCK_TOKENS, TraceRequest


class LlmD(Policy):
    """llm-d's endpoint picker with the weights 3:2:2 of its guides; the highest sum wins, ties at random.

    Prefix: the matched share of the prompt, by an approximate index of 31,250 blocks of 64 tokens a replica.
    KV: the share of the memory that no running request uses. Queue: (max - own) / (max - min) of the requests that
    wait for the end of their prefill.
    """

    PREFIX_WEIGHT, KV_WEIGHT, QUEUE_WEIGHT = 3.0, 2.0, 2.0
    INDEX_BLOCKS = 31_250 * 64 // BLOCK_TOKENS

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._index = DispatchIndex(fleet.num_replicas, self.INDEX_BLOCKS)

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        most, least = max(fleet.prefilling), min(fleet.prefilling)
        prefix_weight = self.PREFIX_WEIGHT / len(request.blocks)
        queue_weight = self.QUEUE_WEIGHT / max(1, most - least)
        costs = []
        for replica, depth in enumerate(self._index.match(request.blocks)):
            used = fleet.replicas[replica].cache.num_pinned / fleet.cache_blocks
            queue = queue_weight * (fleet.prefilling[replica] - least)
            costs.append(self.KV_WEIGHT * used + queue - prefix_weight * depth)
        return fleet.least(costs)

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        self._index.add(request.blocks, replica)


class Dynamo(Policy):
    """Dynamo's cost, in blocks: max(0, prefill blocks active there + of this request - its blocks cached there)
    + blocks of prompts and outputs in flight there; the lowest, ties at random.
    """

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        costs = [
            max(0.0, queued / BLOCK_TOKENS + len(request.blocks) - depth) + active
            for depth, queued, active in zip(
                fleet.match(request), fleet.queued_tokens, fleet.active_blocks, strict=True
            )
        ]
        return fleet.least(costs)


class Preble(Policy):
    """Preble's E2. More of the prompt cached than not: the least loaded of those that hold the most of it. Else
    the lowest load + eviction + prefill.

    Load: the prefill seconds sent there in the last three minutes that have not ended. Eviction: the prefill seconds
    of the unused cached blocks that this request would push out, weighed by the share of sent tokens that were hits.
    Its replication of a prefix whose queueing time has doubled is left to the second rule.
    """

    WINDOW_S = 180.0

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._sent: list[deque[tuple[float, int, float]]] = [deque() for _ in range(fleet.num_replicas)]
        self._pending: list[dict[int, float]] = [{} for _ in range(fleet.num_replicas)]
        self._tokens = 0  # sent in all
        self._hit_tokens = 0  # of these, cached where they went

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        loads = [self._load_s(replica) for replica in range(fleet.num_replicas)]
        depths = fleet.match(request)
        deepest = max(depths)
        if 2 * deepest > len(request.blocks):
            holders = [replica for replica, depth in enumerate(depths) if depth == deepest]
            return fleet.least(loads, holders)
        costs = [
            load_s + self._eviction_s(request, replica) + self._prefill_s(request, replica)
            for replica, load_s in enumerate(loads)
        ]
        return fleet.least(costs)

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        seconds = self._prefill_s(request, replica)
        self._pending[replica][request.index] = seconds
        self._sent[replica].append((self.fleet.now_s, request.index, seconds))
        self._tokens += request.num_tokens
        self._hit_tokens += request.num_tokens - self.fleet.uncached_tokens(request)[replica]

    def prefilled(self, request: TraceRequest, replica: int) -> None:
        self._pending[replica].pop(request.index, None)

    def _load_s(self, replica: int) -> float:
        sent, pending = self._sent[replica], self._pending[replica]
        while sent and sent[0][0] < self.fleet.now_s - self.WINDOW_S:
            pending.pop(sent.popleft()[1], None)
        return sum(pending.values())

    def _prefill_s(self, request: TraceRequest, replica: int) -> float:
        num_uncached = self.fleet.uncached_tokens(request)[replica]
        return self.fleet.model.prefill_time_s(request.num_tokens - num_uncached, num_uncached)

    def _eviction_s(self, request: TraceRequest, replica: int) -> float:
        cache = self.fleet.replicas[replica].cache
        room = self.fleet.cache_blocks - len(cache)
        num_evicted = max(0, len(request.blocks) - self.fleet.match(request)[replica] - room)
        hit_share = self._hit_tokens / max(1, self._tokens)
        return hit_share * num_evicted * BLOCK_TOKENS * self.fleet.model.token_s


class LMetric(Policy):
    """LMetric: the lowest product of new prefill tokens (queued there and of this request) and batch size (requests
    in flight there and this one); ties at random.
    """

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        costs = [
            (queued + own) * (in_flight + 1)
            for queued, own, in_flight in zip(
                fleet.queued_tokens, fleet.uncached_tokens(request), fleet.in_flight, strict=True
            )
        ]
        return fleet.least(costs)
