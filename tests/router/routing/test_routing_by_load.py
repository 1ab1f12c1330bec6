"""What replicas report and what a router sent them, seen in where requests go. Real sockets, replicas that wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from protocol.messages import Load
from protocol.speeds import Speeds
from router.requests.routed_request import Reason

Make = Callable[..., Awaitable[Any]]
IDLE = Load(0, 0, 1024, 0, 0, 0)
FAST, SLOW = Speeds(0.01, 0.001, 0.0, 0.01, 0.0), Speeds(0.01, 0.003, 0.0, 0.01, 0.0)


@pytest.fixture
async def stack() -> Any:
    async with AsyncExitStack() as opened:
        yield opened


async def places(stack: AsyncExitStack, router: Any, make_request: Any, count: int) -> Counter[str]:
    """Of cold requests of a thousand tokens each, none of which ends."""
    found: Counter[str] = Counter()
    for number in range(count):
        request = make_request(range(5000 * number, 5000 * number + 1000))
        found[(await stack.enter_async_context(router.open(request))).replica] += 1
    return found


async def test_a_replica_that_reports_to_be_three_times_slower_gets_a_third(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, stack: AsyncExitStack
) -> None:
    fast = await make_replica("fast", automatic=False, load=replace(IDLE, speeds=FAST))
    slow = await make_replica("slow", automatic=False, load=replace(IDLE, speeds=SLOW))
    router = await make_router([fast, slow])
    fast.emit()
    slow.emit()
    await eventually(lambda: all(each.load is not None for each in router.status().replicas))
    found = await places(stack, router, make_request, 20)
    assert found["slow"] == pytest.approx(5, abs=1)


async def test_a_request_that_has_its_first_token_is_in_nobodys_way(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, stack: AsyncExitStack
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    generation = await stack.enter_async_context(router.open(make_request(range(1000))))
    assert router.status().replicas[0].prefill_tokens == 1000
    await eventually(lambda: len(replica.running) == 1)
    replica.step()
    await anext(generation)
    await eventually(lambda: router.status().replicas[0].prefill_tokens == 0)


async def test_a_request_that_is_left_takes_its_load_along(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica(automatic=False)])
    async with router.open(make_request(range(1000))):
        pass
    assert router.status().replicas[0].prefill_tokens == 0


async def test_a_short_prompt_joins_the_long_one_rather_than_many_short_ones(
    make_replica: Make, make_router: Make, make_request: Any, stack: AsyncExitStack
) -> None:
    """It overtakes there, and would wait for its likes here."""
    router = await make_router([await make_replica(name, automatic=False) for name in "ab"])
    long = await stack.enter_async_context(router.open(make_request(range(100_000))))
    found = [
        (await stack.enter_async_context(router.open(make_request(range(n, n + 400))))).replica
        for n in range(200_000, 250_000, 2_000)
    ]
    assert found[0] != long.replica and long.replica in found


async def test_a_session_without_a_prefix_keeps_its_replica_while_all_are_idle(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica(name, automatic=False) for name in "abcd"])
    chosen = set()
    for number in range(8):
        request = make_request(range(5000 * number, 5000 * number + 10), affinity="session")
        async with router.open(request) as generation:
            chosen.add((generation.replica, generation.decision.reason))
    assert len(chosen) == 1 and next(iter(chosen))[1] is Reason.AFFINITY


async def test_of_three_routers_each_knows_how_busy_all_of_them_keep_the_replicas(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    busy = await make_replica(load=replace(IDLE, prefill_utilization=0.5))
    routers = [await make_router([busy]) for _ in range(3)]
    busy.emit()
    for router in routers:
        await eventually(
            lambda router=router: router.explain(make_request()).price == pytest.approx(2.0, rel=0.05)
        )
