"""Our policy over exact replicas: the product's index, fed by their KV events, and its board, fed by their loads.

What `dispatcher.py` and `replica_view.py` do between sockets is done here in simulated time, in the same order. The
others' policies run over exact replicas as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.block_hash import split_digests
from router.prefixes.prefix_index import PrefixIndex
from router.routing.loads import RoutingRequest
from router.routing.policy import choose
from router.routing.prefill_board import PrefillBoard
from simulator.exact import ExactReplica
from simulator.fleet import Fleet
from simulator.policies.policy import Policy
from simulator.policies.registry import ORDERS, POLICIES
from simulator.prompts import Prompts
from simulator.simulation import Order
from simulator.trace import TraceRequest


class ExactTrunkline(Policy):
    """Predicted matches, by the whole prompt's blocks; speeds as the replicas have learnt them."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.predicted: dict[int, int] = {}  # request -> cached tokens expected where it was sent
        self._index = PrefixIndex()
        self._board = PrefillBoard()
        self._names = [str(replica) for replica in range(fleet.num_replicas)]
        self._expectations: dict[int, int] = {}
        for name in self._names:
            self._index.connect(name)
            self._index.begin_snapshot(name)
            self._index.end_snapshot(name)  # an empty cache
            self._board.add(name)

    def choose(self, request: TraceRequest) -> int:
        now_s, size = self.fleet.now_s, self._prompts.hasher.block_size
        self._index.expire(now_s)
        most = (request.num_tokens - 1) // size  # one token is always computed
        depths = self._index.match(self._prompts.of(request).digests[:most])
        loads = self._board.columns(now_s, tenant=request.tenant.encode())
        matched = [depths.get(name, 0) * size for name in loads.replicas]
        routing = RoutingRequest(request.num_tokens, matched, priority=request.priority)
        decision = choose(routing, loads, self.fleet.rng)
        self.predicted[request.index] = decision.matched_tokens
        return int(decision.replica)

    def dispatched(self, request: TraceRequest, replica: int) -> None:
        name, now_s = self._names[replica], self.fleet.now_s
        num_cached = self.predicted[request.index]
        self._expectations[request.index] = self._index.expect(name, self._prompts.of(request).digests, now_s)
        self._board.dispatched(
            name,
            str(request.index),
            num_uncached=request.num_tokens - num_cached,
            num_cached=num_cached,
            now_s=now_s,
            tenant=request.tenant.encode(),
            priority=request.priority,
        )

    def prefilled(self, request: TraceRequest, replica: int) -> None:
        self._board.prefilled(self._names[replica], str(request.index))
        self._index.withdraw(self._expectations.pop(request.index))

    def ended(self, request: TraceRequest, replica: int) -> None:
        self._board.ended(self._names[replica], str(request.index))

    def reported(self, replica: int) -> None:
        for event in self.fleet.events[replica]:
            self._index.apply(self._names[replica], event)
        load = self.fleet.loads[replica]
        assert load is not None, "it has just reported"
        num_submits = self.fleet.num_submits[replica]
        self._board.report_load(
            self._names[replica], load, self._prompts.hasher.block_size, num_submits, self.fleet.now_s
        )

    def check_integrity(self, snapshots: Mapping[str, bytes]) -> None:
        """For tests, when all news has come: the index holds what each replica's cache does, and expects nothing."""
        self._index.check_integrity()
        assert not self._expectations, "a prefill is expected to end that has ended"
        for name, digests in snapshots.items():
            held = len(split_digests(digests))
            assert self._index.num_blocks(name) == held, f"{self._index.num_blocks(name)} of {held} blocks"

    @property
    def _prompts(self) -> Prompts:
        replica = self.fleet.replicas[0]
        assert isinstance(replica, ExactReplica), "this policy reads what exact replicas report"
        return replica.prompts


EXACT_POLICIES: Mapping[str, Callable[[Fleet], Policy]] = {
    name: policy for name, policy in POLICIES.items() if not name.startswith("oracle")
} | {"trunkline": ExactTrunkline}
EXACT_ORDERS: Mapping[str, Order] = {  # the scheduler asks each step: there are no whole prefills
    name: order for name, order in ORDERS.items() if not name.endswith("-whole")
}
