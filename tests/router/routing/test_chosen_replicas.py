"""Where requests go, over real sockets: to their prefix, and else to who has least to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.messages import Load
from router.requests.routed_request import Reason

Make = Callable[..., Awaitable[Any]]


async def test_the_second_request_follows_its_prefix_and_the_prediction_is_true(
    make_replica: Make, make_router: Make, make_request: Any, tokens_of: Make
) -> None:
    router = await make_router([await make_replica("a"), await make_replica("b")])
    async with router.open(make_request(range(33))) as first:
        await tokens_of(first)
    async with router.open(make_request(range(33))) as second:
        assert second.replica == first.replica
        assert (second.decision.reason, second.decision.matched_tokens) == (Reason.PREFIX, 32)
        assert (await anext(second)).num_cached_tokens == 32
    assert router.counters.predicted_cached_tokens == router.counters.actual_cached_tokens == 32
    assert router.counters.best_available_cached_tokens == 32


@pytest.mark.parametrize(("num_tokens", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
async def test_one_token_at_least_is_always_predicted_to_be_computed(
    num_tokens: int, cached: int, make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router([await make_replica()])
    await answer(router, make_request(range(num_tokens)))
    async with router.open(make_request(range(num_tokens))) as generation:
        assert generation.decision.matched_tokens == cached
        assert (await anext(generation)).num_cached_tokens == cached


async def test_a_twin_follows_at_once_before_the_first_has_been_prefilled(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replicas = [await make_replica(name, automatic=False) for name in "abcd"]
    router = await make_router(replicas)
    async with (
        router.open(make_request(range(1000))) as first,
        router.open(make_request(range(1000))) as twin,
    ):
        assert twin.replica == first.replica and twin.decision.matched_tokens == 996


async def test_tenants_do_not_match_each_other(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router([await make_replica()])
    await answer(router, make_request(range(20), isolation=b"one"))
    async with router.open(make_request(range(20), isolation=b"other")) as generation:
        assert generation.decision.matched_tokens == 0


async def test_requests_of_one_moment_do_not_all_see_an_idle_replica(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replicas = [await make_replica(name, automatic=False) for name in "abcd"]
    router = await make_router(replicas)
    opened = [router.open(make_request(range(100 * n, 100 * n + 10))) for n in range(1, 9)]
    places = [(await each.__aenter__()).replica for each in opened]
    assert sorted(places) == sorted("abcd" * 2)
    for each in opened:
        await each.__aexit__(None, None, None)


async def test_a_replica_that_reports_more_load_is_avoided(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    busy = await make_replica("a", load=Load(0, 0, 1024, 0, 0, waiting_prefill_tokens=9000))
    router = await make_router([busy, await make_replica("b")])
    busy.emit()
    await eventually(lambda: router.status().replicas[0].prefill_tokens == 9000)
    for n in range(4):
        async with router.open(make_request([n])) as generation:
            assert generation.replica == "b"


async def test_what_another_router_made_cached_is_known_here(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    replicas = [await make_replica("a"), await make_replica("b")]
    one, other = await make_router(replicas), await make_router(replicas)
    async with one.open(make_request(range(20))) as first:
        await tokens_of(first)
    await eventually(lambda: any(each.num_indexed_blocks == 5 for each in other.status().replicas))
    async with other.open(make_request(range(20))) as second:
        assert (second.replica, second.decision.reason) == (first.replica, Reason.PREFIX)
