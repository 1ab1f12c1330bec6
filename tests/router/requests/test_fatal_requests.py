"""Requests that end the replicas they run on: such a one is stopped, and nobody else pays for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from protocol.errors import FatalRequest, ReplicaLost
from protocol.membership import ReplicaState
from protocol.messages import SequenceOutput
from router.http.api_errors import api_error
from router.http.metrics import EndpointMetrics
from router.requests.generation import PROOF_TOKENS, Generation, Placement
from router.requests.routed_request import Decision, Reason
from router.requests.suspects import Suspects

Make = Callable[..., Awaitable[Any]]
FATAL = 666


async def answer(router: Any, request: Any) -> list[int]:
    async with router.open(request) as generation:
        return [token async for output in generation for token in output.token_ids]


def num_connected(router: Any) -> int:
    return sum(each.connected for each in router.status().replicas)


async def test_in_a_crowd_it_ends_two_replicas_and_no_other_request(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica(name, fatal_token=FATAL) for name in "abc"])
    crowd = [make_request(range(n, n + 9), max_tokens=30) for n in range(40)]
    crowd.insert(20, make_request([1, FATAL, 2], max_tokens=30))
    answers = await asyncio.gather(*(answer(router, each) for each in crowd), return_exceptions=True)
    assert isinstance(answers.pop(20), FatalRequest)
    assert answers == [list(range(30))] * 40
    assert num_connected(router) == 1 and router.counters.fatal_requests == 1


async def test_alone_it_ends_two_replicas(make_replica: Make, make_router: Make, make_request: Any) -> None:
    router = await make_router([await make_replica(name, fatal_token=FATAL) for name in "abc"])
    with pytest.raises(FatalRequest, match="2 replicas died"):
        await answer(router, make_request([FATAL]))
    assert num_connected(router) == 1 and router.status().num_live_requests == 0


async def test_the_log_names_it_and_the_metrics_count_it(
    make_replica: Make, make_router: Make, make_request: Any, caplog: pytest.LogCaptureFixture
) -> None:
    router = await make_router([await make_replica(name, fatal_token=FATAL) for name in "ab"])
    request = make_request([FATAL, FATAL])
    with caplog.at_level(logging.ERROR), pytest.raises(FatalRequest):
        await answer(router, request)
    assert f"request {request.request_id} is stopped" in caplog.text
    assert "a (1), b (1)" in caplog.text and "2 prompt tokens" in caplog.text
    metrics = EndpointMetrics()
    metrics.attach("v1", "model", router)
    page = metrics.page().decode()
    assert 'trunkline_router_fatal_requests_total{model_name="model"} 1.0' in page


def test_clients_are_told_not_to_send_it_again() -> None:
    told, lost = api_error(FatalRequest("no"), "r"), api_error(ReplicaLost("maybe"), "r")
    assert (told.status, told.headers.get("x-should-retry")) == (500, "false")
    assert (lost.status, lost.headers.get("x-should-retry")) == (503, None)


async def test_requests_of_a_dead_replica_start_one_by_one(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    dying, other = await make_replica("a", automatic=False), await make_replica("b", automatic=False)
    router = await make_router([dying], apart_timeout_s=1000.0)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(router.open(make_request(max_tokens=9)))
        await eventually(lambda: len(dying.running) == 3)
        await router.set_replicas([dying.info(), other.info()])
        await eventually(lambda: num_connected(router) == 2)
        await dying.die()
        for num_started in (1, 2, 3):
            await eventually(lambda: len(other.submits) == num_started)  # noqa: B023
            assert router.status().num_waiting_requests == 3 - num_started
            other.step()
        assert router.counters.moves == 3


async def test_a_new_request_need_not_wait_for_them(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    dying, other = await make_replica("a", automatic=False), await make_replica("b", automatic=False)
    router = await make_router([dying], apart_timeout_s=1000.0)
    async with router.open(make_request()), router.open(make_request()):
        await eventually(lambda: len(dying.running) == 2)
        await router.set_replicas([dying.info(), other.info()])
        await eventually(lambda: num_connected(router) == 2)
        await dying.die()
        await eventually(lambda: router.status().num_waiting_requests == 1)
        async with router.open(make_request()) as new:
            assert new.replica == "b"


async def test_when_the_first_of_them_leaves_the_next_one_starts(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    dying, other = await make_replica("a", automatic=False), await make_replica("b", automatic=False)
    router = await make_router([dying], apart_timeout_s=1000.0)
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        for stack in (first, second):
            await stack.enter_async_context(router.open(make_request()))
        await eventually(lambda: len(dying.running) == 2)
        await router.set_replicas([dying.info(), other.info()])
        await eventually(lambda: num_connected(router) == 2)
        await dying.die()
        await eventually(lambda: len(other.submits) == 1)
        name = other.submits[0].request_id.split("~")[0]
        await (first if name.endswith("-0") else second).aclose()
        await eventually(lambda: len(other.submits) == 2)


async def test_they_wait_for_their_turn_a_short_time_only(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    dying, other = await make_replica("a", automatic=False), await make_replica("b", automatic=False)
    router = await make_router([dying], apart_timeout_s=0.02)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(router.open(make_request()))
        await eventually(lambda: len(dying.running) == 4)
        await router.set_replicas([dying.info(), other.info()])
        await eventually(lambda: num_connected(router) == 2)
        await dying.die()
        await eventually(lambda: len(other.running) == 4)


async def test_a_connection_that_broke_and_came_back_is_nobodys_fault(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    async with router.open(make_request()) as generation:
        for num_places in (1, 2, 3):
            await eventually(lambda: len(replica.submits) == num_places)  # noqa: B023
            replica.cut()
        await eventually(lambda: len(replica.submits) == 4)
        assert generation.deaths == 0
        replica.automatic = True
        replica._work.set()
        assert [output.token_ids[0] async for output in generation] == [0, 1, 2]


async def test_a_replica_that_died_while_it_drained_is_nobodys_fault(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    old, new = await make_replica("a", automatic=False), await make_replica("b", automatic=False)
    router = await make_router([old])
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        await router.set_replicas([old.info(ReplicaState.DRAINING), new.info()])
        await old.die()
        await eventually(lambda: len(new.running) == 1)
        assert generation.deaths == 0 and router.counters.replica_losses == 0


# Who is it?


def running(request: Any, *, heard: bool = False, blames: tuple[str, ...] = ()) -> Generation:
    generation = Generation(request, None)
    generation.place(Placement(Decision("z", 0, 0.0, Reason.ONLY), "wire", 0, True))
    generation.heard, generation.blames = heard, {(replica, 1) for replica in blames}
    return generation


@pytest.fixture
def suspects() -> Suspects:
    return Suspects(2, 1.0, lambda: None)


def test_one_death_stops_nobody(suspects: Suspects, make_request: Any) -> None:
    alone = running(make_request())
    assert suspects.blame([alone], ("z", 1)) is None and alone.deaths == 1


def test_of_many_it_is_the_one_that_saw_two_deaths(suspects: Suspects, make_request: Any) -> None:
    culprit = running(make_request(), blames=("a",))
    crowd = [running(make_request()) for _ in range(5)]
    assert suspects.blame([*crowd, culprit], ("z", 1)) is culprit


def test_of_several_it_is_the_one_without_an_output(suspects: Suspects, make_request: Any) -> None:
    culprit = running(make_request(), blames=("a",))
    tried = [running(make_request(), blames=("a",), heard=True) for _ in range(5)]
    assert suspects.blame([*tried, culprit], ("z", 1)) is culprit


def test_where_it_cannot_be_told_nobody_is_stopped(suspects: Suspects, make_request: Any) -> None:
    twins = [running(make_request(), blames=("a",)) for _ in range(2)]
    assert suspects.blame(twins, ("z", 1)) is None


def test_the_same_death_counts_once(suspects: Suspects, make_request: Any) -> None:
    alone = running(make_request(), blames=("z",))
    assert suspects.blame([alone], ("z", 1)) is None and alone.deaths == 1


def test_some_tokens_at_a_new_place_clear_of_all_blame(make_request: Any) -> None:
    generation = running(make_request(max_tokens=100, n=2), blames=("a",))
    for place in range(2 * PROOF_TOKENS):
        assert generation.deaths == 1
        generation.push(SequenceOutput("wire", place % 2, (place,), 0))
    assert generation.deaths == 0


def test_tokens_of_the_place_that_died_prove_nothing(make_request: Any) -> None:
    generation = running(make_request(max_tokens=100))
    for place in range(PROOF_TOKENS):
        generation.push(SequenceOutput("wire", 0, (place,), 0))
    generation.blames.add(("z", 1))
    generation.displace()
    generation.place(Placement(Decision("b", 0, 0.0, Reason.ONLY), "wire~1", 0, True))
    generation.push(SequenceOutput("wire~1", 0, (1,), 0))
    assert generation.deaths == 1
