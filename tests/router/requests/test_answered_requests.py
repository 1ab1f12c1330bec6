"""A request at one replica that lives: what it sends, and what comes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.errors import ContextLengthExceeded
from protocol.tokens import pack_tokens
from router.requests.routed_request import Reason

Make = Callable[..., Awaitable[Any]]


async def test_a_request_yields_every_token_and_its_end(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica()])
    async with router.open(make_request(max_tokens=3)) as generation:
        outputs = [output async for output in generation]
    assert [output.token_ids for output in outputs] == [(0,), (1,), (2,)]
    assert outputs[-1].finish_reason is not None
    assert generation.replica == "a" and generation.decision.reason is Reason.ONLY
    assert router.counters.finished == 1 and router.status().num_live_requests == 0


async def test_all_sequences_of_a_request_come_mixed_and_whole(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router([await make_replica()])
    assert await answer(router, make_request(n=3, max_tokens=2)) == [[0, 1], [1000, 1001], [2000, 2001]]


async def test_the_router_learns_block_size_and_context_from_its_replica(
    make_replica: Make, make_router: Make
) -> None:
    router = await make_router()
    assert (router.ready, router.block_size, router.max_model_len) == (False, None, None)
    router = await make_router([await make_replica(block_size=8)])
    assert (router.ready, router.block_size, router.max_model_len) == (True, 8, 4096)


async def test_submit_carries_the_digests_of_the_full_blocks(
    make_replica: Make, make_router: Make, make_request: Any, hasher: BlockHasher, answer: Make
) -> None:
    replica = await make_replica()
    await answer(await make_router([replica]), make_request(range(10), isolation=b"tenant"))
    assert replica.submits[0].digests == b"".join(hasher.digests(pack_tokens(range(10)), b"tenant"))
    assert len(replica.submits[0].digests) == 2 * 16


async def test_an_empty_prompt_gets_through(
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router = await make_router([await make_replica("a"), await make_replica("b")])
    assert await answer(router, make_request([], max_tokens=1)) == [[0]]


async def test_a_rejection_is_that_requests_error_alone(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, tokens_of: Make, answer: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica])
    async with router.open(make_request()) as running:
        await eventually(lambda: len(replica.running) == 1)
        replica.reject_code = ContextLengthExceeded.code
        with pytest.raises(ContextLengthExceeded) as raised:
            await answer(router, make_request())
        assert raised.value.param == "prompt"
        replica.automatic = True
        replica._work.set()
        assert await tokens_of(running) == [[0, 1, 2]]
    assert replica.cancels == []


async def test_a_fault_in_routing_answers_its_request(
    make_replica: Make, make_router: Make, make_request: Any, monkeypatch: pytest.MonkeyPatch, answer: Make
) -> None:
    router = await make_router([await make_replica()])
    broken = replace(make_request(), token_ids=b"")
    monkeypatch.setattr(router._index, "match", lambda digests: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await answer(router, broken)
    assert router.status().num_live_requests == 0


async def test_a_stopped_sequence_is_cancelled_alone_and_its_siblings_are_answered(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    async with router.open(make_request(n=2, max_tokens=6)) as generation:
        first = await anext(generation)
        generation.stop(first.index)
        rest = [output.index async for output in generation]
    assert set(rest) - {first.index} == {1 - first.index}
    assert rest.count(1 - first.index) >= 5
    await eventually(lambda: replica.stops == [(generation.request.request_id, first.index)])
    assert replica.cancels == []


async def test_a_request_whose_sequences_are_all_stopped_is_finished(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica()])
    async with router.open(make_request(max_tokens=1000)) as generation:
        await anext(generation)
        generation.stop(0)
        assert [output async for output in generation] == []
    assert router.counters.finished == 1 and router.status().num_live_requests == 0
