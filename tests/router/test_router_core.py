"""The router's core against replicas on real sockets: routing, waiting, cancelling, and going on when one dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    NoReplica,
    Overloaded,
    ReplicaLost,
)
from protocol.events import Removed, Stored
from protocol.membership import ReplicaState
from protocol.messages import FinishReason, Load, SequenceOutput, SnapshotChunk, StepFrame
from protocol.tokens import pack_tokens
from router.prefixes.prefix_index import IndexState
from router.requests.routed_request import Reason

Make = Callable[..., Awaitable[Any]]


async def tokens_of(generation: Any, num_sequences: int = 1) -> list[list[int]]:
    """Each sequence's tokens, to the end."""
    tokens: list[list[int]] = [[] for _ in range(num_sequences)]
    async for output in generation:
        tokens[output.index].extend(output.token_ids)
    return tokens


async def answer(router: Any, request: Any) -> list[list[int]]:
    async with router.open(request) as generation:
        return await tokens_of(generation, request.sampling.n)


# One replica


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
    make_replica: Make, make_router: Make, make_request: Any
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
    make_replica: Make, make_router: Make, make_request: Any, hasher: BlockHasher
) -> None:
    replica = await make_replica()
    await answer(await make_router([replica]), make_request(range(10), isolation=b"tenant"))
    assert replica.submits[0].digests == b"".join(hasher.digests(pack_tokens(range(10)), b"tenant"))
    assert len(replica.submits[0].digests) == 2 * 16


async def test_an_empty_prompt_gets_through(make_replica: Make, make_router: Make, make_request: Any) -> None:
    router = await make_router([await make_replica("a"), await make_replica("b")])
    assert await answer(router, make_request([], max_tokens=1)) == [[0]]


async def test_a_rejection_is_that_requests_error_alone(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
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


# Leaving, deadlines, draining


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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    await answer(router, make_request())
    assert await router.reset_prefix_cache() == 0  # comes after whatever was sent before
    assert replica.cancels == []


async def test_a_passed_deadline_ends_the_request_here_and_there(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
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
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    with pytest.raises(DeadlineExceeded):
        await answer(router, make_request(deadline_s=0.0))
    assert replica.submits == []


async def test_draining_refuses_new_requests_and_ends_the_running_ones(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
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
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica(automatic=False)])
    async with router.open(make_request()) as generation:
        await router.aclose()
        with pytest.raises(Draining):
            await tokens_of(generation)


# No replica ready


async def test_a_request_waits_for_the_first_replica(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    router = await make_router()
    waiting = asyncio.create_task(answer(router, make_request()))
    await eventually(lambda: router.status().num_waiting_requests == 1)
    await router.set_replicas([(await make_replica()).info()])
    assert await waiting == [[0, 1, 2]]


async def test_a_request_that_waits_in_vain_gets_no_replica(make_router: Make, make_request: Any) -> None:
    router = await make_router(admission_timeout_s=0.02)
    with pytest.raises(NoReplica):
        await answer(router, make_request())
    assert router.status().num_waiting_requests == 0


async def test_the_requests_own_deadline_bounds_its_wait(make_router: Make, make_request: Any) -> None:
    router = await make_router()
    with pytest.raises(NoReplica):
        await answer(router, make_request(deadline_s=0.02))


async def test_a_full_queue_asks_to_come_back_later(
    make_router: Make, make_request: Any, eventually: Make
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
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica(automatic=False)], max_live_requests=1)
    async with router.open(make_request()):
        with pytest.raises(Overloaded):
            await answer(router, make_request())


# Where requests go


async def test_the_second_request_follows_its_prefix_and_the_prediction_is_true(
    make_replica: Make, make_router: Make, make_request: Any
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
    num_tokens: int, cached: int, make_replica: Make, make_router: Make, make_request: Any
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
    make_replica: Make, make_router: Make, make_request: Any
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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replicas = [await make_replica("a"), await make_replica("b")]
    one, other = await make_router(replicas), await make_router(replicas)
    async with one.open(make_request(range(20))) as first:
        await tokens_of(first)
    await eventually(lambda: any(each.num_indexed_blocks == 5 for each in other.status().replicas))
    async with other.open(make_request(range(20))) as second:
        assert (second.replica, second.decision.reason) == (first.replica, Reason.PREFIX)


async def test_a_new_router_is_exact_after_its_snapshot(
    make_replica: Make, make_router: Make, make_request: Any, hasher: BlockHasher
) -> None:
    cache = hasher.digests(pack_tokens(range(20)))
    router = await make_router([await make_replica("a", cache=cache), await make_replica("b")])
    assert router.status().replicas[0].num_indexed_blocks == 5
    async with router.open(make_request(range(20))) as generation:
        assert (generation.replica, generation.decision.matched_tokens) == ("a", 16)


async def test_an_evicted_block_matches_no_more(
    make_replica: Make, make_router: Make, make_request: Any, hasher: BlockHasher, eventually: Make
) -> None:
    cache = hasher.digests(pack_tokens(range(20)))
    replica = await make_replica(cache=list(cache))
    router = await make_router([replica])
    replica.evict(*cache[2:])
    await eventually(lambda: router.status().replicas[0].num_indexed_blocks == 2)
    async with router.open(make_request(range(20))) as generation:
        assert generation.decision.matched_tokens == 8


async def test_reset_empties_the_caches_and_the_index(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica("a"), await make_replica("b")])
    await answer(router, make_request(range(20)))
    assert await router.reset_prefix_cache() == 0
    assert [each.num_indexed_blocks for each in router.status().replicas] == [0, 0]


async def test_reset_tells_how_many_are_in_use(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica(automatic=False)])
    async with router.open(make_request()):
        assert await router.reset_prefix_cache() == 1


async def test_a_replica_without_a_snapshot_is_shown_blind_and_serves(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    router = await make_router([await make_replica(sends_snapshot=False)], wait=False)
    await eventually(lambda: router.ready)
    assert await answer(router, make_request()) == [[0, 1, 2]]
    assert router.status().replicas[0].index is IndexState.BLIND


async def test_events_between_the_chunks_follow_the_snapshot(
    make_replica: Make, make_router: Make, hasher: BlockHasher, eventually: Make
) -> None:
    first, second, third = hasher.digests(pack_tokens(range(12)))
    replica = await make_replica(sends_snapshot=False)
    router = await make_router([replica], wait=False)
    await eventually(lambda: router.ready)
    load = replica.load
    replica.send(StepFrame(6, (), (Stored(third, None),), load))  # in the snapshot: the eviction came first
    replica.send(SnapshotChunk(7, first, False))
    replica.send(StepFrame(8, (), (Removed(second),), load))
    replica.send(SnapshotChunk(7, second, True))
    await eventually(lambda: router.status().replicas[0].index is IndexState.SYNCED)
    assert router.status().replicas[0].num_indexed_blocks == 1


async def test_reports_that_contradict_the_index_force_a_new_snapshot(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica(reported_cached_tokens=0)
    router = await make_router([replica])
    for _ in range(9):  # the first is cold: nothing predicted, nothing reported
        await answer(router, make_request(range(20)))
    await eventually(lambda: replica.num_resyncs == 1)
    await eventually(lambda: router.status().replicas[0].index is IndexState.SYNCED)
    assert router.counters.resyncs == 1


# Replicas come, go and die


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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
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
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replicas = [await make_replica(name, die_after_tokens=1) for name in "abc"]
    router = await make_router(replicas)
    with pytest.raises(ReplicaLost, match="2 replicas died"):
        await answer(router, make_request(max_tokens=9))
    assert sum(len(each.submits) for each in replicas) == 2
    assert router.counters.failed == 1


async def test_a_request_moves_three_times_and_no_more(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replicas = [await make_replica(name, die_after_tokens=1) for name in "abcde"]
    router = await make_router(replicas, max_deaths=100)
    with pytest.raises(ReplicaLost, match="moved 3 times"):
        await answer(router, make_request(max_tokens=9))
    assert sum(len(each.submits) for each in replicas) == 4


async def test_a_cut_replica_comes_back_with_an_exact_index(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    await answer(router, make_request(range(20)))
    replica.cut()
    await eventually(lambda: replica.num_connections == 2)
    await eventually(lambda: router.status().replicas[0].index is IndexState.SYNCED)
    async with router.open(make_request(range(20))) as generation:
        assert generation.decision.matched_tokens == 16


async def test_a_draining_replica_keeps_its_requests_and_gets_no_new_ones(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    old, new = await make_replica("a", automatic=False), await make_replica("b")
    router = await make_router([old])
    async with router.open(make_request(range(20))) as running:
        await eventually(lambda: len(old.running) == 1)
        await router.set_replicas([old.info(ReplicaState.DRAINING), new.info()])
        await eventually(lambda: router.status().replicas[1].connected)
        async with router.open(make_request(range(20))) as other:
            assert other.replica == "b"
        for _ in range(3):
            old.step()
        assert await tokens_of(running) == [[0, 1, 2]]


async def test_a_replica_that_says_itself_that_it_drains_is_left_alone(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    draining = await make_replica("a", reject_code=Draining.code)
    router = await make_router([draining, await make_replica("b")])
    for n in range(4):
        assert await answer(router, make_request([n])) == [[0, 1, 2]]
    assert len(draining.submits) <= 1


async def test_leaving_the_membership_moves_live_requests_and_is_no_death(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    old, new = await make_replica("a", automatic=False), await make_replica("b")
    router = await make_router([old])
    async with router.open(make_request()) as generation:
        await eventually(lambda: len(old.running) == 1)
        old.step()
        await anext(generation)
        await router.set_replicas([new.info()])
        assert await tokens_of(generation) == [[1, 2]]
    assert router.counters.replica_losses == 0
    assert [each.replica_id for each in router.status().replicas] == ["b"]
    await eventually(lambda: old.running == {})


async def test_a_stale_incarnation_is_refused_and_the_reason_is_shown(
    make_replica: Make, make_router: Make, eventually: Make
) -> None:
    stale = await make_replica(incarnation=1)
    router = await make_router()
    await router.set_replicas([stale.info(incarnation=2)])
    await eventually(lambda: "incarnation 1" in router.status().replicas[0].detail)
    assert not router.ready


async def test_a_new_incarnation_takes_over_and_old_news_changes_nothing(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    old, new = await make_replica(incarnation=1), await make_replica(incarnation=2)
    router = await make_router([old])
    await router.set_replicas([new.info()])
    await eventually(lambda: len(new.writers) == 1 and router.ready)
    await router.set_replicas([old.info()])
    assert await answer(router, make_request()) == [[0, 1, 2]]
    assert old.submits == [] and router.status().replicas[0].incarnation == 2


async def test_another_replica_at_the_address_is_refused(
    make_replica: Make, make_router: Make, eventually: Make
) -> None:
    other = await make_replica("b")
    router = await make_router()
    await router.set_replicas([other.info(replica_id="a")])
    await eventually(lambda: "replica b answers" in router.status().replicas[0].detail)


async def test_a_replica_that_is_starting_or_failed_is_not_connected_to(
    make_replica: Make, make_router: Make
) -> None:
    replica = await make_replica()
    router = await make_router()
    await router.set_replicas([replica.info(ReplicaState.STARTING, host=None, port=None)])
    await router.set_replicas([replica.info(ReplicaState.FAILED, detail="rank 1 died")])
    assert router.status().replicas[0].detail == "rank 1 died"
    assert not router.ready and replica.num_connections == 0


async def test_many_requests_over_two_deaths_lose_and_repeat_no_token(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replicas = [await make_replica(name) for name in "abc"]
    router = await make_router(replicas, max_deaths=3)
    replicas[0].die_after_tokens, replicas[1].die_after_tokens = 5, 12
    requests = [make_request(range(n, n + 9), max_tokens=30, n=2) for n in range(20)]
    answers = await asyncio.gather(*(answer(router, request) for request in requests))
    assert all(each == [list(range(30)), list(range(1000, 1030))] for each in answers)
    assert router.counters.finished == 20 and router.status().num_live_requests == 0
    router._index.check_integrity()


async def test_a_fault_in_routing_answers_its_request(
    make_replica: Make, make_router: Make, make_request: Any, monkeypatch: pytest.MonkeyPatch
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
