"""Replicas that come, drain, go and come again: who is connected to, and who gets requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from protocol.errors import Draining
from protocol.membership import ReplicaState

Make = Callable[..., Awaitable[Any]]


async def test_a_draining_replica_keeps_its_requests_and_gets_no_new_ones(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    old, new = await make_replica("a", automatic=False), await make_replica("b")
    router = await make_router([old])
    async with router.open(make_request(range(20))) as running:
        await eventually(lambda: len(old.running) == 1)
        await router.set_replicas([old.info(ReplicaState.DRAINING), new.info()])
        await eventually(lambda: router.status().replicas[1].connected)
        async with router.open(make_request(range(20))) as other:
            assert other.replica == "b"
        for _ in range(3):
            old.step()
        assert await tokens_of(running) == [[0, 1, 2]]


async def test_a_replica_that_says_itself_that_it_drains_is_left_alone(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    draining = await make_replica("a", reject_code=Draining.code)
    router = await make_router([draining, await make_replica("b")])
    for n in range(4):
        assert await answer(router, make_request([n])) == [[0, 1, 2]]
    assert len(draining.submits) <= 1


async def test_leaving_the_membership_moves_live_requests_and_is_no_death(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    old, new = await make_replica("a", automatic=False), await make_replica("b")
    router = await make_router([old])
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        old.step()
        await anext(generation)
        await router.set_replicas([new.info()])
        assert await tokens_of(generation) == [[1, 2]]
    assert router.counters.replica_losses == 0
    assert [each.replica_id for each in router.status().replicas] == ["b"]
    await eventually(lambda: old.running == {})


async def test_a_stale_incarnation_is_refused_and_the_reason_is_shown(
    make_replica: Make, make_router: Make, eventually: Make
) -> None:
    stale = await make_replica(incarnation=1)
    router = await make_router()
    await router.set_replicas([stale.info(incarnation=2)])
    await eventually(lambda: "incarnation 1" in router.status().replicas[0].detail)
    assert not router.ready


async def test_a_new_incarnation_takes_over_and_old_news_changes_nothing(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    old, new = await make_replica(incarnation=1), await make_replica(incarnation=2)
    router = await make_router([old])
    await router.set_replicas([new.info()])
    await eventually(lambda: len(new.writers) == 1 and router.ready)
    await router.set_replicas([old.info()])
    assert await answer(router, make_request()) == [[0, 1, 2]]
    assert old.submits == [] and router.status().replicas[0].incarnation == 2


async def test_another_replica_at_the_address_is_refused(
    make_replica: Make, make_router: Make, eventually: Make
) -> None:
    other = await make_replica("b")
    router = await make_router()
    await router.set_replicas([other.info(replica_id="a")])
    await eventually(lambda: "replica b answers" in router.status().replicas[0].detail)


async def test_a_replica_that_is_starting_or_failed_is_not_connected_to(
    make_replica: Make, make_router: Make
) -> None:
    replica = await make_replica()
    router = await make_router()
    await router.set_replicas([replica.info(ReplicaState.STARTING, host=None, port=None)])
    await router.set_replicas([replica.info(ReplicaState.FAILED, detail="rank 1 died")])
    assert router.status().replicas[0].detail == "rank 1 died"
    assert not router.ready and replica.num_connections == 0
