"""Requests that no replica can take yet: how many wait, how long, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import NoReplica, Overloaded

Make = Callable[..., Awaitable[Any]]


async def test_a_request_waits_for_the_first_replica(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    router = await make_router()
    waiting = asyncio.create_task(answer(router, make_request()))
    await eventually(lambda: router.status().num_waiting_requests == 1)
    await router.set_replicas([(await make_replica()).info()])
    assert await waiting == [[0, 1, 2]]


async def test_a_request_that_waits_in_vain_gets_no_replica(
    make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router(admission_timeout_s=0.02)
    with pytest.raises(NoReplica):
        await answer(router, make_request())
    assert router.status().num_waiting_requests == 0


async def test_the_requests_own_deadline_bounds_its_wait(
    make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router()
    with pytest.raises(NoReplica):
        await answer(router, make_request(deadline_s=0.02))


async def test_a_full_queue_asks_to_come_back_later(
    make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    router = await make_router(max_waiting_requests=1, retry_after_s=7.0)
    waiting = asyncio.create_task(answer(router, make_request()))
    await eventually(lambda: router.status().num_waiting_requests == 1)
    with pytest.raises(Overloaded) as raised:
        await answer(router, make_request())
    assert raised.value.retry_after_s == 7.0
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert router.status().num_waiting_requests == 0


async def test_more_live_requests_than_the_bound_are_turned_away(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router([await make_replica(automatic=False)], max_live_requests=1)
    async with router.open(make_request()):
        with pytest.raises(Overloaded):
            await answer(router, make_request())
