"""One replica leaves at this router: nothing new goes there, and no stream breaks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import Draining
from protocol.membership import ReplicaState

Make = Callable[..., Awaitable[Any]]
LONG_S = 1000.0


async def tokens_of(generation: Any) -> list[int]:
    return [token async for output in generation for token in output.token_ids]


async def answer(router: Any, request: Any) -> list[int]:
    async with router.open(request) as generation:
        return await tokens_of(generation)


def wake(replica: Any) -> None:
    replica.automatic = True
    replica._work.set()


def drain(router: Any, deadline_s: float) -> asyncio.Task[bool]:
    return asyncio.create_task(router.drain_replica("a", deadline_s))


@pytest.fixture
async def old(make_replica: Make) -> Any:
    return await make_replica("a", automatic=False)


@pytest.fixture
async def router(old: Any, make_router: Make) -> Any:
    """Knows only the old replica yet."""
    return await make_router([old])


@pytest.fixture
def join(router: Any, old: Any, eventually: Make) -> Make:
    """Another replica becomes ready."""

    async def wait(*others: Any) -> None:
        await router.set_replicas([old.info(), *(other.info() for other in others)])
        await eventually(lambda: all(each.connected for each in router.status().replicas))

    return wait


async def test_a_replica_without_requests_is_drained_at_once(router: Any) -> None:
    assert await router.drain_replica("a", LONG_S)
    assert not router.ready


async def test_one_that_is_not_there_is_drained(router: Any) -> None:
    assert await router.drain_replica("unknown", LONG_S)


async def test_it_gets_nothing_new(
    router: Any, join: Make, make_replica: Make, make_request: Any, old: Any
) -> None:
    await join(await make_replica("b"))
    await router.drain_replica("a", LONG_S)
    for n in range(4):
        await answer(router, make_request([n]))
    assert old.submits == [] and not router.status().replicas[0].accepting


async def test_within_the_deadline_live_requests_end_where_they_are(
    router: Any, old: Any, join: Make, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        await join(await make_replica("b"))
        draining = drain(router, LONG_S)
        await asyncio.sleep(0)
        assert not draining.done()
        wake(old)
        assert await tokens_of(generation) == [0, 1, 2]
        assert await draining and router.counters.moves == 0


async def test_at_the_deadline_they_go_on_elsewhere(
    router: Any, old: Any, join: Make, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        old.step()
        await anext(generation)
        other = await make_replica("b")
        await join(other)
        assert await router.drain_replica("a", 0.0)
        assert await tokens_of(generation) == [1, 2]
        await eventually(lambda: old.cancels == [generation.request.request_id])
        assert generation.deaths == 0 and router.counters.replica_losses == 0


async def test_with_nowhere_to_go_a_stream_is_not_broken(
    router: Any, old: Any, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        draining = drain(router, 0.0)
        await eventually(lambda: router._views["a"].overdue)
        assert not draining.done() and len(old.running) == 1
        wake(old)
        assert await tokens_of(generation) == [0, 1, 2]
        assert await draining


async def test_what_stayed_moves_as_soon_as_it_can(
    router: Any, old: Any, join: Make, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        draining = drain(router, 0.0)
        await eventually(lambda: router._views["a"].overdue)
        await join(await make_replica("b"))
        assert await draining
        assert await tokens_of(generation) == [0, 1, 2]


async def test_a_request_that_may_move_no_more_stays(
    old: Any, make_router: Make, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    router = await make_router([old], max_moves=0)
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        await router.set_replicas([old.info(), (await make_replica("b")).info()])
        await eventually(lambda: router.status().replicas[1].accepting)
        draining = drain(router, 0.0)
        await eventually(lambda: router._views["a"].overdue)
        wake(old)
        assert await tokens_of(generation) == [0, 1, 2]
        assert await draining and router.counters.failed == 0


async def test_named_ready_again_it_takes_requests(
    router: Any, old: Any, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()):
        draining = drain(router, LONG_S)
        await asyncio.sleep(0)
        await router.set_replicas([old.info(ReplicaState.DRAINING)])
        assert not draining.done()
        await router.set_replicas([old.info()])
        assert await draining is False
        assert router.ready


async def test_the_same_membership_again_calls_nothing_off(
    router: Any, old: Any, join: Make, make_replica: Make, make_request: Any
) -> None:
    async with router.open(make_request()):
        draining = drain(router, LONG_S)
        await asyncio.sleep(0)
        await join(await make_replica("b"))
        assert not draining.done() and not router.status().replicas[0].accepting
        draining.cancel()


async def test_two_calls_join_and_the_earlier_deadline_counts(
    router: Any, join: Make, make_replica: Make, make_request: Any
) -> None:
    async with router.open(make_request()) as generation:
        await join(await make_replica("b"))
        patient = drain(router, LONG_S)
        await asyncio.sleep(0)
        hasty = drain(router, 0.0)
        assert await asyncio.gather(patient, hasty) == [True, True]
        assert generation.replica == "b"


async def test_a_later_deadline_prolongs_nothing(
    router: Any, join: Make, make_replica: Make, make_request: Any
) -> None:
    async with router.open(make_request()):
        await join(await make_replica("b"))
        hasty = drain(router, 0.01)
        await asyncio.sleep(0)
        assert await asyncio.gather(hasty, drain(router, LONG_S)) == [True, True]


async def test_a_caller_that_leaves_does_not_end_the_drain(router: Any, make_request: Any) -> None:
    async with router.open(make_request()):
        leaving = drain(router, LONG_S)
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert not router.ready
        waiting = drain(router, LONG_S)
    assert await waiting


async def test_a_replica_that_dies_meanwhile_is_drained_and_nobody_is_blamed(
    router: Any, old: Any, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        draining = drain(router, LONG_S)
        await asyncio.sleep(0)
        await old.die()
        assert await draining
        assert generation.deaths == 0 and router.counters.replica_losses == 0


async def test_one_that_leaves_the_membership_is_drained(
    router: Any, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        draining = drain(router, LONG_S)
        await asyncio.sleep(0)
        await router.set_replicas([(await make_replica("b")).info()])
        assert await draining
        assert await tokens_of(generation) == [0, 1, 2]


async def test_a_new_incarnation_takes_requests(
    router: Any, old: Any, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    await router.drain_replica("a", LONG_S)
    new = await make_replica("a", incarnation=2)
    await router.set_replicas([new.info()])
    await eventually(lambda: router.ready)
    assert await answer(router, make_request()) == [0, 1, 2]


async def test_a_router_that_drains_itself_still_moves_what_it_has(
    router: Any, old: Any, join: Make, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        await join(await make_replica("b"))
        router.drain()
        with pytest.raises(Draining):
            await answer(router, make_request())
        await old.die()
        assert await tokens_of(generation) == [0, 1, 2]
