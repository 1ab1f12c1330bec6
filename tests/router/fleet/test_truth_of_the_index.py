"""What the index says of a replica, and what the replica's cache really does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from protocol.block_hash import isolation_key, split_digests
from protocol.events import Stored
from protocol.messages import Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from router.prefixes.prefix_index import IndexState, PrefixIndex
from workers.engine import Engine

Make = Callable[..., Awaitable[Any]]


def test_after_every_step_the_index_equals_the_cache_and_no_block_is_without_its_parent(
    make_engine: Any, turns: Any
) -> None:
    """The second half is what lets a lookup gallop. A small pool, so that blocks are evicted all the time, and some
    blocks refreshed without those before them, so that these go first.
    """
    (engine, _), index, dice = make_engine(120, 64), PrefixIndex(), random.Random(5)
    index.connect("a")
    index.begin_snapshot("a")
    index.end_snapshot("a")
    parents: dict[bytes, bytes | None] = {}
    for number, prompt in enumerate(turns(150)):
        sampling = SamplingParams(n=dice.choice([1, 1, 3]), max_tokens=dice.randrange(1, 30), seed=1)
        engine.submit(Submit(str(number), pack_tokens(prompt[-200:]), sampling))
        if dice.random() < 0.2:
            engine.cancel(str(number - dice.randrange(5)))
        engine.touch(engine.snapshot()[-16 * dice.randrange(4) :])
        for _ in range(dice.randrange(1, 12)):
            follow(engine, index, parents)
    while engine.has_work:
        follow(engine, index, parents)
    assert engine.load().num_preemptions > 0 and engine.load().cache.evicted > 0


def follow(engine: Engine, index: PrefixIndex, parents: dict[bytes, bytes | None]) -> None:
    for event in engine.step().events:
        assert index.apply("a", event), "an engine's events never contradict what it said before"
        if isinstance(event, Stored):
            chain = split_digests(event.digests)
            parents.update(zip(chain, [event.parent, *chain], strict=False))
    held = set(split_digests(engine.snapshot()))
    assert index.num_blocks("a") == len(held) and all(index.match([digest]) for digest in held)
    assert all(parents[digest] is None or parents[digest] in held for digest in held)


async def test_blocks_that_are_lost_without_a_word_are_found_out_and_healed_by_one_snapshot(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make, caught_up: Make
) -> None:
    prompts = [range(1000 * number, 1000 * number + 41) for number in range(1, 25)]
    replica = await make_engine_replica("a", num_blocks=2000, warm=prompts)
    router = await make_router([replica], resync_interval_s=1e-9)
    replica.on_step_thread(lose_everything)
    await answer(
        router, make_request(prompts[0])
    )  # computes, and so stores, what the index believes to be there
    assert router.counters.resyncs == 1 and router.counters.mispredicted_tokens == 40
    await caught_up([router], [replica])
    assert router.status().replicas[0].index is IndexState.SYNCED
    for prompt in prompts:
        await answer(router, make_request(prompt))
    assert router.counters.mispredicted_tokens == router.counters.predicted_cached_tokens - 40 == 40
    assert router.counters.resyncs == 1


async def test_a_block_that_came_without_a_word_is_found_out_at_the_first_hit(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make, caught_up: Make
) -> None:
    replica = await make_engine_replica("a")
    router = await make_router([replica])
    replica.on_step_thread(compute_in_secret)
    await answer(router, make_request(range(1, 42)))
    assert (router.counters.predicted_cached_tokens, router.counters.actual_cached_tokens) == (0, 40)
    assert router.counters.resyncs == 1
    await caught_up([router], [replica])
    await answer(router, make_request(range(1, 42)))
    assert (router.counters.predicted_cached_tokens, router.counters.actual_cached_tokens) == (40, 80)


async def test_what_other_routers_have_computed_meanwhile_is_no_drift(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make, eventually: Make
) -> None:
    replica = await make_engine_replica("a")
    one, other = await make_router([replica]), await make_router([replica])
    for number in range(1, 13):
        replica.runner.gate.clear()
        request = [make_request(range(1000 * number, 1000 * number + 41)) for _ in range(2)]
        asked = [asyncio.create_task(answer(one, request[0]))]
        await eventually(lambda: replica.engine.has_work)
        asked.append(asyncio.create_task(answer(other, request[1])))
        await eventually(lambda: other.status().num_live_requests == 1)
        replica.runner.gate.set()
        await asyncio.gather(*asked)
    assert other.counters.actual_cached_tokens > other.counters.predicted_cached_tokens == 0
    assert one.counters.resyncs == other.counters.resyncs == 0


def lose_everything(engine: Engine) -> None:
    assert engine.reset_prefix_cache() == 0
    engine._scheduler.take_events()  # nobody hears of it


def compute_in_secret(engine: Engine) -> None:
    engine.submit(Submit("secret", pack_tokens(range(1, 42)), SamplingParams(max_tokens=1, seed=1)))
    while engine.has_work:
        engine.step()


async def test_a_hot_prefix_is_computed_once_a_replica_however_many_ask_before_it_is_there(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make, eventually: Make
) -> None:
    replicas = {name: await make_engine_replica(name, num_blocks=4000) for name in "abcd"}
    router = await make_router(list(replicas.values()))
    for replica in replicas.values():
        replica.runner.gate.clear()
    requests = [make_request([*range(1, 401), *range(1000 * n, 1000 * n + 8)]) for n in range(1, 25)]
    asked = asyncio.gather(*(answer(router, request) for request in requests))
    await eventually(lambda: router.status().num_live_requests == len(requests))
    placed = {each.replica_id: each.num_live_requests for each in router.status().replicas}
    for replica in replicas.values():
        replica.runner.gate.set()
    await asked
    for name, count in placed.items():
        assert replicas[name].runner.num_computed == (400 + 8 * count if count else 0)


ISOLATIONS = [(None, None), (None, "one"), (None, "other"), ("one", None), ("other", None), ("one", "other")]


async def test_what_another_salt_or_adapter_has_cached_never_matches_and_ones_own_always_does(
    make_engine_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_engine_replica("a")])
    for turn, (adapter, salt) in enumerate([*ISOLATIONS, *ISOLATIONS]):
        request = make_request(range(1, 42), isolation=isolation_key(adapter, salt))
        async with router.open(request) as generation:
            matched = generation.decision.best_matched_tokens
            cached = (await anext(generation)).num_cached_tokens
        assert matched == cached == (0 if turn < len(ISOLATIONS) else 40)
