"""Requests whose replica dies: they go on elsewhere, or their client hears why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.errors import ReplicaLost
from protocol.messages import FinishReason, SequenceOutput, StepFrame
from protocol.tokens import pack_tokens

Make = Callable[..., Awaitable[Any]]


async def test_a_dead_replicas_request_goes_on_elsewhere_without_a_gap(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replicas = [await make_replica(name, die_after_tokens=4) for name in "ab"]
    router = await make_router(replicas)
    async with router.open(make_request(max_tokens=9)) as generation:
        first = generation.replica
        survivor = next(each for each in replicas if each.replica_id != first)
        survivor.die_after_tokens = None
        outputs = [output async for output in generation]
    assert [output.token_ids[0] for output in outputs] == list(range(9))
    assert {output.request_id for output in outputs} == {generation.request.request_id}
    assert survivor.submits[0].generated == (pack_tokens(range(4)),)
    assert generation.replica != first and router.counters.moves == 1


async def test_a_sequence_that_has_finished_does_not_run_again(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    dying, other = await make_replica("a", automatic=False), await make_replica("b")
    router = await make_router([dying])
    request = make_request(n=2, max_tokens=3)
    async with router.open(request) as generation:
        await router.set_replicas([dying.info(), other.info()])
        await eventually(lambda: len(dying.running) == 1)
        outputs = (
            SequenceOutput(request.request_id, 0, (0,), 0, FinishReason.STOP),
            SequenceOutput(request.request_id, 1, (1000,), 0),
        )
        dying.send(StepFrame(1, outputs, (), dying.load))
        assert [(await anext(generation)).index for _ in range(2)] == [0, 1]
        await dying.die()
        assert await tokens_of(generation, 2) == [[], [1001, 1002]]
    assert other.submits[0].finished == (0,)
    assert other.submits[0].generated == (pack_tokens([0]), pack_tokens([1000]))


async def test_a_moved_request_waits_when_nobody_else_is_there(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make
) -> None:
    dying = await make_replica("a", automatic=False)
    router = await make_router([dying])
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(dying.running) == 1)
        dying.step()
        await anext(generation)
        await dying.die()
        await eventually(lambda: router.status().num_waiting_requests == 1)
        await router.set_replicas([dying.info(), (await make_replica("b")).info()])
        assert await tokens_of(generation) == [[1, 2]]


async def test_a_moved_request_that_waits_in_vain_says_that_its_replica_was_lost(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    dying = await make_replica("a", automatic=False)
    router = await make_router([dying], admission_timeout_s=0.02)
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(dying.running) == 1)
        dying.step()
        await dying.die()
        assert (await anext(generation)).token_ids == (0,)  # what came is not taken back
        with pytest.raises(ReplicaLost):
            await anext(generation)


async def test_a_replica_that_comes_back_gets_its_request_under_another_id(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(replica.submits) == 1)
        replica.cut()
        await eventually(lambda: len(replica.submits) == 2)
        first, second = replica.submits
        assert first.request_id != second.request_id
        replica.step()
        assert (await anext(generation)).request_id == generation.request.request_id


async def test_a_request_that_two_replicas_died_of_is_not_tried_on_a_third(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    replicas = [await make_replica(name, die_after_tokens=1) for name in "abc"]
    router = await make_router(replicas)
    with pytest.raises(ReplicaLost, match="2 replicas died"):
        await answer(router, make_request(max_tokens=9))
    assert sum(len(each.submits) for each in replicas) == 2
    assert router.counters.failed == 1


async def test_a_request_moves_three_times_and_no_more(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    replicas = [await make_replica(name, die_after_tokens=1) for name in "abcde"]
    router = await make_router(replicas, max_deaths=100)
    with pytest.raises(ReplicaLost, match="moved 3 times"):
        await answer(router, make_request(max_tokens=9))
    assert sum(len(each.submits) for each in replicas) == 4


async def test_many_requests_over_two_deaths_lose_and_repeat_no_token(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    replicas = [await make_replica(name) for name in "abc"]
    router = await make_router(replicas, max_deaths=3)
    replicas[0].die_after_tokens, replicas[1].die_after_tokens = 5, 12
    requests = [make_request(range(n, n + 9), max_tokens=30, n=2) for n in range(20)]
    answers = await asyncio.gather(*(answer(router, request) for request in requests))
    assert all(each == [list(range(30)), list(range(1000, 1030))] for each in answers)
    assert router.counters.finished == 20 and router.status().num_live_requests == 0
    router._index.check_integrity()
