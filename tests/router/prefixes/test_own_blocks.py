"""Blocks that one replica alone holds: what a deployment would lose with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.block_hash import BlockHasher, join_digests
from protocol.events import Stored
from protocol.tokens import pack_tokens
from router.prefixes.prefix_index import PrefixIndex

Make = Callable[..., Awaitable[Any]]


def chain(blocks: range) -> list[bytes]:
    return [number.to_bytes(16, "little") for number in blocks]


def hold(index: PrefixIndex, replica: str, blocks: range) -> None:
    index.apply(replica, Stored(join_digests(chain(blocks)), None))


@pytest.fixture
def index() -> PrefixIndex:
    """Three replicas that are known to hold nothing."""
    made = PrefixIndex()
    for replica in ("a", "b", "c"):
        made.connect(replica)
        made.begin_snapshot(replica)
        made.end_snapshot(replica)
    return made


async def test_counts_the_blocks_that_no_other_replica_holds(index: PrefixIndex) -> None:
    hold(index, "a", range(0, 10))
    hold(index, "b", range(7, 30))
    assert await index.own_blocks() == {"a": 7, "b": 20, "c": 0}


async def test_what_is_only_expected_is_nobodys(index: PrefixIndex) -> None:
    hold(index, "a", range(3))
    index.expect("b", chain(range(5)), now=0.0)
    assert await index.own_blocks() == {"a": 3, "b": 0, "c": 0}


async def test_nothing_is_told_of_a_blind_replica(index: PrefixIndex) -> None:
    hold(index, "a", range(3))
    hold(index, "b", range(3))
    index.blind("b")
    index.add_to_snapshot("b", join_digests(chain(range(2))))
    assert await index.own_blocks() == {"a": 3, "c": 0}


async def test_a_lost_replicas_blocks_are_the_others_own_before_they_are_swept(index: PrefixIndex) -> None:
    for replica in ("a", "b"):
        hold(index, replica, range(1000))
    index.disconnect("b")
    hold(index, "c", range(1000, 1010))  # sweeps some of them out, not all
    assert index.num_entries == 1010
    assert await index.own_blocks() == {"a": 1000, "c": 10}


async def test_the_event_loop_goes_on_while_they_are_counted(index: PrefixIndex) -> None:
    hold(index, "a", range(20_000))
    counting, num_turns = asyncio.create_task(index.own_blocks()), 0
    while not counting.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns >= 20_000 // 2048


async def test_what_happens_while_they_are_counted_does_not_count(index: PrefixIndex) -> None:
    hold(index, "a", range(20_000))
    counting = asyncio.create_task(index.own_blocks())
    await asyncio.sleep(0)  # it has begun
    hold(index, "b", range(15_000, 30_000))
    index.disconnect("a")
    index.connect("d")
    hold(index, "c", range(60_000))  # every bit is swept out, and may be another's
    assert not counting.done()
    assert await counting == {"a": 20_000, "b": 0, "c": 0}


async def test_a_router_tells_what_its_replicas_hold_alone(
    make_replica: Make, make_router: Make, hasher: BlockHasher
) -> None:
    cache = hasher.digests(pack_tokens(range(20)))
    router = await make_router(
        [await make_replica("a", cache=cache), await make_replica("b", cache=cache[:2])]
    )
    assert await router.own_blocks() == (("a", 3), ("b", 0))
