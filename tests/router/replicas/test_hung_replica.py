"""A replica that is connected and answers pings, but steps no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from protocol.messages import FinishReason, SequenceOutput, StepFrame
from router.http.metrics import EndpointMetrics

Make = Callable[..., Awaitable[Any]]
HANG = {"hang_timeout_s": 0.01}  # five times that for the first step


async def tokens_of(generation: Any) -> list[int]:
    return [token async for output in generation for token in output.token_ids]


def wake(replica: Any) -> None:
    replica.automatic = True
    replica._work.set()


@pytest.fixture
def hanging(make_replica: Make, make_router: Make, make_request: Any, eventually: Make) -> Any:
    """A request that has got one token, at a replica that now hangs; its router, the replica, the request's state."""

    @asynccontextmanager
    async def begin(*others: Any, **config: Any) -> AsyncIterator[Any]:
        replica = await make_replica("a", automatic=False)
        router = await make_router([replica], **{**HANG, **config})
        async with router.open(make_request(max_tokens=4)) as generation:
            await eventually(lambda: len(replica.running) == 1)
            replica.step()
            assert (await anext(generation)).token_ids == (0,)
            await router.set_replicas([replica.info(), *(other.info() for other in others)])
            yield router, replica, generation

    return begin


async def test_its_requests_go_on_elsewhere_and_are_cancelled_there(
    hanging: Any, make_replica: Make, eventually: Make
) -> None:
    other = await make_replica("b")
    async with hanging(other) as (router, hung, generation):
        assert await tokens_of(generation) == [1, 2, 3]
        assert generation.replica == "b"
        await eventually(lambda: hung.cancels == [generation.request.request_id])
        assert (router.counters.hangs, router.counters.moves) == (1, 1)


async def test_it_is_shown_and_gets_nothing_new(
    hanging: Any, make_replica: Make, make_request: Any, eventually: Make
) -> None:
    async with hanging(await make_replica("b")) as (router, hung, generation):
        await tokens_of(generation)
        status = router.status().replicas[0]
        assert status.connected and not status.accepting
        assert status.detail.startswith("no step for")
        metrics = EndpointMetrics()
        metrics.attach("v1", "m", router)
        page = metrics.page().decode()
        assert 'trunkline_replica_ready{engine="a",model_name="m"} 0.0' in page
        assert 'trunkline_router_hangs_total{model_name="m"} 1.0' in page
        for _ in range(4):
            async with router.open(make_request()) as new:
                assert new.replica == "b"
        assert len(hung.submits) == 1


async def test_what_it_sends_after_all_reaches_nobody(
    hanging: Any, make_replica: Make, eventually: Make
) -> None:
    other = await make_replica("b", automatic=False)
    async with hanging(other) as (_, hung, generation):
        await eventually(lambda: len(other.running) == 1)
        old = hung.submits[0].request_id
        late = SequenceOutput(old, 0, (77,), 0, FinishReason.STOP)
        hung.send(StepFrame(9, (late,), (), hung.load))
        wake(other)
        assert await tokens_of(generation) == [1, 2, 3]


async def test_once_it_steps_again_it_is_ready_and_nobody_is_blamed(
    hanging: Any, make_replica: Make, eventually: Make
) -> None:
    other = await make_replica("b", automatic=False)
    async with hanging(other) as (router, hung, generation):
        await eventually(lambda: len(other.running) == 1)
        assert generation.deaths == 1
        hung.emit()
        await eventually(lambda: router.status().replicas[0].accepting)
        assert generation.deaths == 0 and router.status().replicas[0].detail == ""


async def test_with_nowhere_to_go_the_request_waits_and_may_come_back(hanging: Any, eventually: Make) -> None:
    async with hanging() as (router, hung, generation):
        await eventually(lambda: router.status().num_waiting_requests == 1)
        await eventually(lambda: hung.cancels != [])
        wake(hung)
        hung.emit()
        assert await tokens_of(generation) == [1, 2, 3]
        assert len(hung.submits) == 2


async def test_a_replica_without_work_does_not_hang(
    hanging: Any, make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica("a")], **HANG)
    async with router.open(make_request()) as generation:
        await tokens_of(generation)
    await asyncio.sleep(0.1)
    assert router.counters.hangs == 0 and router.ready


async def test_what_was_expected_to_be_cached_there_is_expected_no_more(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    hung, other = await make_replica("a", automatic=False), await make_replica("b", automatic=False)
    router = await make_router([hung], **HANG)
    async with router.open(make_request(range(40))):
        await router.set_replicas([hung.info(), other.info()])
        await eventually(lambda: len(other.running) == 1)
        hung.emit()
        await eventually(lambda: all(each.accepting for each in router.status().replicas))
        costs = {
            terms.replica: terms.matched_tokens for terms in router.explain(make_request(range(40))).costs
        }
        assert costs == {"a": 0, "b": 36}
