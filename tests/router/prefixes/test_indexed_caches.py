"""What the router's index knows of replicas' caches, by snapshots and events over real sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from protocol.block_hash import BlockHasher
from protocol.events import Removed, Stored
from protocol.messages import SnapshotChunk, StepFrame
from protocol.tokens import pack_tokens
from router.prefixes.prefix_index import IndexState

Make = Callable[..., Awaitable[Any]]


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
    make_replica: Make, make_router: Make, make_request: Any, answer: Make
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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
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
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    replica = await make_replica(reported_cached_tokens=0)
    router = await make_router([replica])
    for _ in range(9):  # the first is cold: nothing predicted, nothing reported
        await answer(router, make_request(range(20)))
    await eventually(lambda: replica.num_resyncs == 1)
    await eventually(lambda: router.status().replicas[0].index is IndexState.SYNCED)
    assert router.counters.resyncs == 1


async def test_a_cut_replica_comes_back_with_an_exact_index(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    await answer(router, make_request(range(20)))
    replica.cut()
    await eventually(lambda: replica.num_connections == 2)
    await eventually(lambda: router.status().replicas[0].index is IndexState.SYNCED)
    async with router.open(make_request(range(20))) as generation:
        assert generation.decision.matched_tokens == 16
