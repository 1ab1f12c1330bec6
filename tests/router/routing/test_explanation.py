"""A dry run of routing on real parts: it says what would happen, and leaves no trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import NoReplica
from protocol.membership import ReplicaState
from router.prefixes.prefix_index import IndexState
from router.requests.routed_request import Reason

Make = Callable[..., Awaitable[Any]]


async def test_it_says_where_the_request_then_goes_and_what_each_would_cost(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica("a"), await make_replica("b")])
    async with router.open(make_request(range(33))) as first:
        async for _ in first:
            pass
    explanation = router.explain(make_request(range(33)))
    assert (explanation.decision.replica, explanation.decision.reason) == (first.replica, Reason.PREFIX)
    best, other = explanation.costs
    assert (best.replica, best.matched_tokens, other.matched_tokens) == (first.replica, 32, 0)
    assert best.cost_s < other.cost_s and other.copy_s > 0.0
    assert explanation.indexes == dict.fromkeys("ab", IndexState.SYNCED)
    assert explanation.num_prompt_tokens == 33 and explanation.utilization > 0.0


async def test_it_sends_counts_and_remembers_nothing(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    before = router.status()
    for _ in range(3):
        assert router.explain(make_request(range(33))).decision.matched_tokens == 0
    assert router.status() == before and replica.submits == []
    assert router.counters.requests == 0 and sum(router.counters.decisions.values()) == 0


async def test_a_draining_replica_is_not_in_the_table_and_no_request_goes_there(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    leaving, staying = await make_replica("a"), await make_replica("b")
    router = await make_router([leaving, staying])
    await router.set_replicas([leaving.info(ReplicaState.DRAINING), staying.info()])
    explanation = router.explain(make_request())
    assert [terms.replica for terms in explanation.costs] == ["b"]
    assert explanation.decision.reason is Reason.ONLY
    async with router.open(make_request()) as generation:
        assert generation.replica == "b"


async def test_without_a_ready_replica_it_says_so(make_router: Make, make_request: Any) -> None:
    router = await make_router()
    with pytest.raises(NoReplica):
        router.explain(make_request())
