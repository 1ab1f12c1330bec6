"""The product's own rule: its `choose` over its board of unfinished prefills, in simulated time.

What is the dispatcher's part is done here as there: matches are exact or expected from a dispatch whose prefill has
not ended, and the replica is told at dispatch which cached blocks will be hit.
"""

from __future__ import annotations

from protocol.speeds import UNMEASURED
from router.routing.loads import RoutingRequest
from router.routing.policy import choose
from router.routing.prefill_board import PrefillBoard
from simulator.fleet import Fleet, uncached
from simulator.holders import match_any
from simulator.policies.policy import Policy
from simulator.trace import BLOCK_TOKENS, TraceRequest


class ExpectedBlocks:
    """Of prefills that have not ended: block -> replicas, as in `Holders`, counted by dispatch."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        self._counts: dict[tuple[int, int], int] = {}  # (block, replica) -> dispatches

    def add(self, request: TraceRequest, replica: int) -> None:
        masks, counts, bit = self.masks, self._counts, 1 << replica
        for block in request.blocks:
            counts[block, replica] = counts.get((block, replica), 0) + 1
            masks[block] = masks.get(block, 0) | bit

    def discard(self, request: TraceRequest, replica: int) -> None:
        masks, counts, bit = self.masks, self._counts, 1 << replica
        for block in request.blocks:
            left = counts.pop((block, replica)) - 1
            if left:
                counts[block, replica] = left
            elif masks[block] == bit:
                del masks[block]
            else:
                masks[block] &= ~bit


class Trunkline(Policy):
    """Order-aware and priced: see `router/routing/policy.py`."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._board = PrefillBoard()
        self._names = [str(replica) for replica in range(fleet.num_replicas)]
        self._expected = ExpectedBlocks()
        self._depths: list[int] = []  # of the request that was chosen for last
        for name in self._names:
            self._board.add(name)
            self._board.report(
                name,
                waiting_prefill_tokens=0,
                num_in_flight=0,
                speeds=UNMEASURED,
                free_tokens=fleet.cache_blocks * BLOCK_TOKENS,
            )

    def choose(self, request: TraceRequest) -> int:
        fleet = self.fleet
        masks = (fleet.cached.masks, self._expected.masks)
        self._depths = match_any(masks, request.blocks, fleet.num_replicas)
        matched = [request.num_tokens - uncached(request, depth) for depth in self._depths]
        loads = self._board.columns(fleet.now_s, tenant=request.tenant.encode())
        routing = RoutingRequest(request.num_tokens, matched, priority=request.priority)
        decision = choose(routing, loads, fleet.rng)
        return int(decision.replica)

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        num_uncached = uncached(request, self._depths[replica])
        self._board.dispatched(
            self._names[replica],
            str(request.index),
            num_uncached=num_uncached,
            num_cached=request.num_tokens - num_uncached,
            now_s=self.fleet.now_s,
            tenant=request.tenant.encode(),
            priority=request.priority,
        )
        self._expected.add(request, replica)
        self.fleet.replicas[replica].cache.touch(request.blocks[: self._depths[replica]])

    def prefilled(self, request: TraceRequest, replica: int) -> None:
        self._board.prefilled(self._names[replica], str(request.index))
        self._expected.discard(request, replica)

    def ended(self, request: TraceRequest, replica: int) -> None:
        self._board.ended(self._names[replica], str(request.index))

    def reported(self, replica: int) -> None:
        load = self.fleet.loads[replica]
        assert load is not None, "it has just reported"
        num_submits = self.fleet.num_submits[replica]
        self._board.report_load(self._names[replica], load, BLOCK_TOKENS, num_submits, self.fleet.now_s)


class SharedTrunkline(Trunkline):
    """Our rule over one shared cache of N times the size: what our routing leaves to be won."""

    shares_cache = True
