"""Requests that end before their tokens do: their client leaves, their deadline passes, the router drains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import DeadlineExceeded, Draining
from protocol.messages import FinishReason, SequenceOutput, StepFrame

Make = Callable[..., Awaitable[Any]]


async def test_leaving_early_cancels_at_the_replica(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    request = make_request()
    async with router.open(request):
        await eventually(lambda: len(replica.running) == 1)
    await eventually(lambda: replica.cancels == [request.request_id])
    assert router.counters.cancelled == 1 and router.status().num_live_requests == 0


async def test_a_finished_request_is_not_cancelled(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    await answer(router, make_request())
    assert await router.reset_prefix_cache() == 0  # comes after whatever was sent before
    assert replica.cancels == []


async def test_a_passed_deadline_ends_the_request_here_and_there(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    request = make_request(deadline_s=0.05)
    async with router.open(request) as generation:
        with pytest.raises(DeadlineExceeded):
            await tokens_of(generation)
    await eventually(lambda: replica.cancels == [request.request_id])
    assert 0.0 < replica.submits[0].deadline_s <= 0.05


async def test_a_replica_whose_clock_was_faster_ends_the_request_by_its_deadline_too(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    request = make_request(deadline_s=1000.0)
    async with router.open(request) as generation:
        await eventually(lambda: len(replica.running) == 1)
        abort = SequenceOutput(request.request_id, 0, (), 0, FinishReason.ABORT)
        replica.send(StepFrame(1, (abort,), (), replica.load))
        with pytest.raises(DeadlineExceeded):
            await tokens_of(generation)


async def test_a_deadline_that_has_passed_already_sends_nothing(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    with pytest.raises(DeadlineExceeded):
        await answer(router, make_request(deadline_s=0.0))
    assert replica.submits == []


async def test_draining_refuses_new_requests_and_ends_the_running_ones(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make, answer: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    async with router.open(make_request()) as running:
        await eventually(lambda: len(replica.running) == 1)
        router.drain()
        assert not router.ready
        with pytest.raises(Draining):
            await answer(router, make_request())
        for _ in range(3):
            replica.step()
        assert await tokens_of(running) == [[0, 1, 2]]


async def test_closing_the_router_ends_what_runs_with_an_error(
    make_replica: Make, make_router: Make, make_request: Any, tokens_of: Make
) -> None:
    router = await make_router([await make_replica(automatic=False)])
    async with router.open(make_request()) as generation:
        await router.aclose()
        with pytest.raises(Draining):
            await tokens_of(generation)
