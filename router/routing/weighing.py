"""All that one decision is made from: the prompt's digests, its matches, the loads. Made for `dispatcher.py`.

Between a generation and the pure policy: asks the index and the board, and changes neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

from router.deployment import Deployment
from router.prefixes.prefix_index import PrefixIndex
from router.requests.generation import Generation
from router.requests.routed_request import RoutedRequest
from router.routing.costs import cost_table, price_of_a_copy
from router.routing.explanation import Explanation
from router.routing.loads import ReplicaColumns, RoutingRequest
from router.routing.policy import choose
from router.routing.prefill_board import PrefillBoard


class Weighing:
    def __init__(
        self, deployment: Deployment, index: PrefixIndex, board: PrefillBoard, clock: Callable[[], float]
    ) -> None:
        self._deployment = deployment
        self._index = index
        self._board = board
        self._clock = clock

    def weigh(
        self, generation: Generation, ready: Collection[str]
    ) -> tuple[Sequence[bytes], RoutingRequest, ReplicaColumns]:
        """The prompt's digests, and what the policy takes for the replicas that are ready."""
        digests, matched = self._match(generation)
        asked = generation.request
        loads = self._board.columns(self._clock(), ready, asked.tenant, asked.weight)
        routing = RoutingRequest(
            generation.num_prompt_tokens + generation.num_generated_tokens,
            [matched.get(replica, 0) for replica in loads.replicas],
            generation.request.affinity,
            generation.request.priority,
        )
        return digests, routing, loads

    def explain(self, request: RoutedRequest, ready: Collection[str]) -> Explanation:
        """What would be decided now, and from what."""
        _, routing, loads = self.weigh(Generation(request, None), ready)
        costs = sorted(cost_table(routing, loads), key=lambda terms: terms.cost_s)
        return Explanation(
            num_prompt_tokens=routing.num_prompt_tokens,
            decision=choose(routing, loads, random.Random()),
            costs=tuple(costs),
            indexes={replica: self._index.state(replica) for replica in ready},
            price=price_of_a_copy(loads),
            utilization=loads.utilization,
            backlog_s=loads.backlog_s,
        )

    def _match(self, generation: Generation) -> tuple[Sequence[bytes], dict[str, int]]:
        """The prompt's digests, and the tokens of it that each replica will find cached."""
        hasher = self._deployment.hasher
        assert hasher is not None, "the first replica has told the block size"
        request = generation.request
        if generation.digests is None:
            generation.digests = hasher.digests(request.token_ids, request.isolation)
        self._index.expire(self._clock())
        if generation.sampling.prompt_logprobs is not None:
            return generation.digests, {}  # these skip the cache: every prompt token is computed
        most = max(0, generation.num_prompt_tokens - 1) // hasher.block_size  # one token is always computed
        depths = self._index.match(generation.digests[:most])
        return generation.digests, {replica: depth * hasher.block_size for replica, depth in depths.items()}
