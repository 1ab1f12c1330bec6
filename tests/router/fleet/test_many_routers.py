"""Routers side by side over the same replicas, with nothing shared but what the replicas tell each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from protocol.block_hash import split_digests
from protocol.codec import encode
from protocol.errors import Draining
from protocol.frames import frame
from protocol.messages import Resync
from router.prefixes.prefix_index import IndexState
from router.router import Router
from workers import router_connection

Make = Callable[..., Awaitable[Any]]
WAVE = 3  # requests at a time, one at each router
STEP_S = 0.001  # a stream of 20,000 tokens lasts longer than what happens beside it


async def hit_tokens(
    routers: Sequence[Router],
    replicas: Any,
    prompts: Sequence[list[int]],
    answer: Make,
    caught_up: Make,
    ask: Any,
) -> int:
    """Serve the prompts in waves, each request at the next router; how many of their tokens were cached."""
    for start in range(0, len(prompts), WAVE):
        wave = prompts[start : start + WAVE]
        asked = [
            answer(routers[number % len(routers)], ask(prompt, max_tokens=4))
            for number, prompt in enumerate(wave)
        ]
        await asyncio.gather(*asked)
        await caught_up(routers, replicas)
    return sum(router.counters.actual_cached_tokens for router in routers)


async def test_three_routers_hit_as_much_as_one(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make, caught_up: Make, turns: Any
) -> None:
    prompts, hits = list(turns(400)), []
    for count in (1, 3):
        replicas = [await make_engine_replica(f"{name}-of-{count}", num_blocks=2500) for name in "abcd"]
        routers = [await make_router(replicas) for _ in range(count)]
        hits.append(await hit_tokens(routers, replicas, prompts, answer, caught_up, make_request))
        assert not any(
            router.counters.resyncs for router in routers
        )  # nor does one take another's work for drift
    alone, together = hits
    assert alone > 0.5 * sum(map(len, prompts))
    assert together >= 0.99 * alone


async def test_a_restarted_router_is_exact_after_eight_snapshots_and_nothing_else(
    make_engine_replica: Make, make_wire: Make, make_router: Make, eventually: Make
) -> None:
    """20,000 blocks a replica: half are everybody's, half its own. A digest travels as its sixteen bytes."""
    prompts = [[[n + 100_000 * own for n in range(40_000)] for own in (0, number)] for number in range(1, 9)]
    replicas = [
        await make_engine_replica(str(number), num_blocks=20_100, step_tokens=40_000, warm=prompts[number])
        for number in range(8)
    ]
    wires = [await make_wire(replica) for replica in replicas]
    router = await make_router()
    await router.set_replicas([each.info(wire.own_port) for each, wire in zip(replicas, wires, strict=True)])
    await eventually(lambda: all(each.index is IndexState.SYNCED for each in router.status().replicas))
    for replica, wire in zip(replicas, wires, strict=True):
        held = split_digests(replica.engine.snapshot())
        assert router._index.num_blocks(replica.replica_id) == len(held) == 20_000
        assert all(replica.replica_id in router._index.match([digest]) for digest in held)
        assert wire.num_bytes <= 16 * len(held) + 2048
    assert 0 < router.status().num_index_bytes <= 150 * 8 * 20_000
    router._index.check_integrity()


async def test_a_stream_of_one_router_goes_on_while_another_restarts(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make, caught_up: Make
) -> None:
    replicas = [await make_engine_replica(name, num_blocks=12_000, step_s=STEP_S) for name in "ab"]
    stays, leaves = await make_router(replicas), await make_router(replicas)
    async with stays.open(make_request(range(1, 42), max_tokens=20_000)) as stream:
        tokens = await next_tokens(stream, 50)
        with pytest.raises(Draining):
            async with leaves.open(make_request(range(500, 542), max_tokens=20_000)) as cut:
                await anext(cut)
                await leaves.aclose()
                await next_tokens(cut, 20_000)
        successor = await make_router(replicas)
        runs_on = next(each.engine for each in replicas if each.replica_id == stream.replica)
        tokens += await next_tokens(stream, runs_on.num_steps + 50 - len(tokens))
        assert not stream.over, "the stream was to be longer than a restart"
    assert tokens == list(range(42, 42 + len(tokens)))
    assert (stays.counters.moves, stays.counters.replica_losses, stays.counters.failed) == (0, 0, 0)
    await caught_up([stays, successor], replicas)
    assert await answer(successor, make_request(range(1, 42))) == await answer(
        stays, make_request(range(1, 42))
    )
    assert successor.counters.predicted_cached_tokens == successor.counters.actual_cached_tokens == 40
    assert stays.counters.predicted_cached_tokens == stays.counters.actual_cached_tokens == 40


async def test_a_router_that_is_cut_off_as_a_slow_reader_takes_nobodys_stream_with_it(
    make_engine_replica: Make,
    make_wire: Make,
    make_router: Make,
    make_request: Any,
    answer: Make,
    caught_up: Make,
    eventually: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_connection, "MAX_BUFFERED_BYTES", 256 * 1024)
    replica = await make_engine_replica("a", num_blocks=12_000, step_s=STEP_S)
    wire, reads = await make_wire(replica), await make_router([replica])
    sleeps = await make_router(ping_interval_s=60.0)  # it shall not notice by itself
    await sleeps.set_replicas([replica.info(wire.own_port)])
    await answer(reads, make_request(range(1, 10_002), max_tokens=1))
    await eventually(lambda: sleeps.status().replicas[0].num_indexed_blocks == 2500)
    async with reads.open(make_request(range(500_000, 500_041), max_tokens=20_000)) as stream:
        tokens = await next_tokens(stream, 50)
        wire.unpaused.clear()
        while len(replica.server.connections) == 2:
            wire.to_replica.write(frame(encode(Resync())))
            tokens += await next_tokens(stream, 1)
        wire.unpaused.set()
        await eventually(
            lambda: sleeps.status().replicas[0].index is IndexState.SYNCED and wire.num_ended == 1
        )
        tokens += await next_tokens(stream, replica.engine.num_steps + 50 - len(tokens))
        assert not stream.over, "the stream was to be longer than that"
    assert tokens == list(range(500_041, 500_041 + len(tokens)))
    assert (reads.counters.moves, reads.counters.replica_losses) == (0, 0)
    await caught_up([reads, sleeps], [replica])
    for router in (reads, sleeps):
        await answer(router, make_request(range(1, 10_002), max_tokens=1))
    assert sleeps.counters.predicted_cached_tokens == sleeps.counters.actual_cached_tokens == 10_000
    assert reads.counters.predicted_cached_tokens == reads.counters.actual_cached_tokens == 10_000


async def test_every_router_sees_a_killed_replica_blind_and_its_successor_exact(
    make_engine_replica: Make,
    make_router: Make,
    make_request: Any,
    answer: Make,
    caught_up: Make,
    eventually: Make,
    turns: Any,
) -> None:
    prompts = list(turns(40))
    stays, dies = await make_engine_replica("stays", 4000), await make_engine_replica("dies", 4000)
    routers = [await make_router([stays, dies]) for _ in range(2)]
    await hit_tokens(routers, [stays, dies], prompts, answer, caught_up, make_request)
    await dies.server.aclose()
    await eventually(lambda: all(not router.status().replicas[1].connected for router in routers))
    for router in routers:
        assert router.status().replicas[1].index is IndexState.BLIND
        assert router.status().replicas[1].num_indexed_blocks == 0
        wrong = router.counters.mispredicted_tokens
        for prompt in prompts:
            await answer(router, make_request(prompt))
        assert (
            router.counters.mispredicted_tokens == wrong
            and router.status().replicas[1].index is IndexState.BLIND
        )
    successor = await make_engine_replica("dies", 4000, warm=prompts[:5], incarnation=2)
    for router in routers:
        await router.set_replicas([stays.info(), successor.info()])
    await caught_up(routers, [stays, successor])
    for router in routers:
        assert router.status().replicas[1].index is IndexState.SYNCED
        assert router.status().replicas[1].num_indexed_blocks > 0
        router._index.check_integrity()


async def next_tokens(stream: Any, count: int) -> list[int]:
    """A step makes one. Whoever asks for more than there were steps gets some that were made after asking."""
    tokens: list[int] = []
    async with asyncio.timeout(30):
        while len(tokens) < count:
            tokens += (await anext(stream)).token_ids
    return tokens
