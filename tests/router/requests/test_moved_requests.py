"""What a move may not do to a request: lose or repeat a token, run on unseen, or wait without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from protocol.errors import ContextLengthExceeded, Draining, ReplicaLost
from protocol.messages import SequenceOutput, StepFrame
from router.requests.generation import PROOF_TOKENS

Make = Callable[..., Awaitable[Any]]


@pytest.fixture
def begun(make_replica: Make, make_router: Make, make_request: Any, eventually: Make) -> Any:
    """A request at the only replica, after one step there."""

    @asynccontextmanager
    async def begin(*, num_steps: int = 1, **wishes: Any) -> AsyncIterator[Any]:
        config = {"admission_timeout_s": wishes.pop("admission_timeout_s", 60.0)}
        replica = await make_replica("a", automatic=False)
        router = await make_router([replica], **config)
        async with router.open(make_request(**wishes)) as generation:
            await eventually(lambda: len(replica.running) == 1)
            for _ in range(num_steps):
                replica.step()
            await eventually(lambda: len(generation._outputs) == num_steps * wishes.get("n", 1))
            yield router, replica, generation

    return begin


@pytest.fixture
def lose(eventually: Make) -> Make:
    async def wait(router: Any, replica: Any) -> None:
        """The replica dies, and its request waits."""
        await replica.die()
        await eventually(lambda: router.status().num_waiting_requests == 1)

    return wait


async def test_what_was_not_read_before_the_move_comes_first(
    begun: Any, lose: Make, make_replica: Make, tokens_of: Make
) -> None:
    async with begun(num_steps=2, n=2) as (router, replica, generation):
        await lose(router, replica)
        await router.set_replicas([replica.info(), (await make_replica("b")).info()])
        assert await tokens_of(generation, 2) == [[0, 1, 2], [1000, 1001, 1002]]


async def test_a_request_moves_twice_without_a_gap(
    begun: Any, lose: Make, make_replica: Make, eventually: Make
) -> None:
    async with begun(max_tokens=12) as (router, replica, generation):
        second = await make_replica("b", automatic=False)
        await router.set_replicas([replica.info(), second.info()])
        await replica.die()
        await eventually(lambda: len(second.running) == 1)
        for _ in range(PROOF_TOKENS):
            second.step()
        await eventually(lambda: len(generation._outputs) == 1 + PROOF_TOKENS)
        await lose(router, second)
        await router.set_replicas([second.info(), (await make_replica("c")).info()])
        outputs = [output async for output in generation]
        assert [output.token_ids[0] for output in outputs] == list(range(12))
        assert {output.request_id for output in outputs} == {generation.request.request_id}
        assert router.counters.moves == 2


async def test_one_that_leaves_while_it_waits_is_sent_nowhere(
    begun: Any, lose: Make, make_replica: Make, eventually: Make
) -> None:
    other = await make_replica("b")
    async with begun() as (router, replica, _):
        await lose(router, replica)
    assert router.status().num_live_requests == 0 and router.counters.cancelled == 1
    await router.set_replicas([replica.info(), other.info()])
    await eventually(lambda: router.ready)
    assert other.submits == []


async def test_a_sequence_that_its_reader_stops_meanwhile_does_not_run_again(
    begun: Any, lose: Make, make_replica: Make, tokens_of: Make
) -> None:
    other = await make_replica("b")
    async with begun(n=2) as (router, replica, generation):
        await lose(router, replica)
        generation.stop(1)
        await router.set_replicas([replica.info(), other.info()])
        assert await tokens_of(generation, 2) == [[0, 1, 2], []]
    assert other.submits[0].finished == (1,) and other.stops == []


async def test_one_whose_reader_stops_all_of_it_meanwhile_is_finished(
    begun: Any, lose: Make, tokens_of: Make
) -> None:
    async with begun() as (router, replica, generation):
        await lose(router, replica)
        generation.stop(0)
        assert await tokens_of(generation) == [[]]
    assert router.counters.finished == 1 and router.status().num_live_requests == 0


async def test_a_stop_that_its_new_place_cannot_heed_yet_ends_all_of_it_there(
    begun: Any, make_replica: Make, eventually: Make
) -> None:
    other = await make_replica("b", automatic=False)
    async with begun() as (router, replica, generation):
        await router.set_replicas([replica.info(), other.info()])
        await replica.die()
        await eventually(lambda: len(other.running) == 1)
        generation.stop(0)  # found in what the first replica had sent
    await eventually(lambda: other.cancels == [other.submits[0].request_id])
    assert router.counters.finished == 1


async def test_a_deadline_goes_on_during_a_move(
    begun: Any, make_replica: Make, eventually: Make, tokens_of: Make
) -> None:
    other = await make_replica("b")
    async with begun(deadline_s=1000.0) as (router, replica, generation):
        await router.set_replicas([replica.info(), other.info()])
        await replica.die()
        await tokens_of(generation)
    assert 0.0 < other.submits[0].deadline_s < 1000.0


async def test_one_that_waits_in_vain_until_its_deadline_says_why(begun: Any) -> None:
    async with begun(deadline_s=0.3) as (_, replica, generation):
        await replica.die()
        assert (await anext(generation)).token_ids == (0,)
        with pytest.raises(ReplicaLost, match="no other became ready"):
            await anext(generation)


async def test_one_that_its_new_place_rejects_gets_the_answer(begun: Any, make_replica: Make) -> None:
    other = await make_replica("b", reject_code=ContextLengthExceeded.code)
    async with begun() as (router, replica, generation):
        await router.set_replicas([replica.info(), other.info()])
        await replica.die()
        assert (await anext(generation)).token_ids == (0,)
        with pytest.raises(ContextLengthExceeded):
            await anext(generation)
    assert router.counters.failed == 1 and router.status().num_live_requests == 0


async def test_cached_tokens_are_those_of_the_first_place(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    dying = await make_replica("a", automatic=False, reported_cached_tokens=8)
    other = await make_replica("b", reported_cached_tokens=0)
    router = await make_router([dying])
    async with router.open(make_request(range(20))) as generation:
        await eventually(lambda: len(dying.running) == 1)
        dying.step()
        assert (await anext(generation)).num_cached_tokens == 8
        await router.set_replicas([dying.info(), other.info()])
        await dying.die()
        assert [output.num_cached_tokens async for output in generation] == [8, 8]
    assert router.counters.actual_cached_tokens == 8


async def test_being_refused_by_replicas_that_drain_is_no_move(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    draining = [await make_replica(name, reject_code=Draining.code) for name in "abcde"]
    router = await make_router([*draining, await make_replica("f")])
    for n in range(3):
        async with router.open(make_request([n])) as generation:
            outputs = [output async for output in generation]
        assert [output.token_ids[0] for output in outputs] == [0, 1, 2]
        assert {output.request_id for output in outputs} == {generation.request.request_id}
    assert router.counters.moves == 0 and router.counters.failed == 0


async def test_after_a_network_blip_what_the_old_connection_ran_reaches_nobody(
    begun: Any, eventually: Make, tokens_of: Make
) -> None:
    async with begun(max_tokens=4) as (_, replica, generation):
        ghost = replica.running[generation.request.request_id]
        replica.cut()
        await eventually(lambda: len(replica.submits) == 2)
        late = SequenceOutput(ghost.submit.request_id, 0, (77,), 0)
        replica.send(StepFrame(9, (late,), (), replica.load))
        replica.automatic = True
        replica._work.set()
        assert await tokens_of(generation) == [[0, 1, 2, 3]]
        assert replica.submits[1].request_id != replica.submits[0].request_id


async def test_many_that_wait_all_go_on(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    dying = await make_replica("a", automatic=False)
    router = await make_router([dying])

    asked = asyncio.gather(*(answer(router, make_request(range(n, n + 9), n=2)) for n in range(30)))
    await eventually(lambda: len(dying.running) == 30)
    dying.step()
    await dying.die()
    await eventually(lambda: router.status().num_waiting_requests == 30)
    await router.set_replicas([dying.info(), (await make_replica("b")).info()])
    assert await asked == [[[0, 1, 2], [1000, 1001, 1002]]] * 30
    assert router.counters.finished == 30 and router.counters.moves == 30


@pytest.mark.parametrize(("num_steps", "counts"), [(0, True), (1, False)])
async def test_what_it_waited_at_a_replica_that_died_counts_unless_it_was_served_there(
    num_steps: int, counts: bool, begun: Any, make_replica: Make, eventually: Make
) -> None:
    other = await make_replica("b")
    async with begun(num_steps=num_steps) as (router, replica, generation):
        await router.set_replicas([replica.info(), other.info()])
        generation.waiting_since_s -= 1000.0
        await replica.die()
        await eventually(lambda: len(other.submits) == 1)
    assert (other.submits[0].waited_s >= 1000.0) is counts
