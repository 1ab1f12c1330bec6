"""Users, the free queue's order, and all-or-nothing allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workers.kv.block import Block
from workers.kv.block_pool import BlockPool
from workers.kv.free_list import FreeList


def make_pool(num_blocks: int = 6) -> BlockPool:
    return BlockPool(num_blocks, evict=lambda block: [])


def ids(blocks: list[Block] | None) -> list[int]:
    assert blocks is not None
    return [block.id for block in blocks]


def test_the_null_block_is_never_handed_out() -> None:
    pool = make_pool(4)
    assert ids(pool.allocate((), 3)) == [1, 2, 3]
    assert pool.allocate((), 1) is None


def test_an_allocation_that_cannot_be_met_touches_nothing() -> None:
    pool = make_pool(6)
    hit, *_ = taken = pool.allocate((), 2) or []
    pool.release(taken)
    before = [block.id for block in pool._free]
    assert pool.allocate([hit], 5) is None
    assert hit.ref_count == 0
    assert [block.id for block in pool._free] == before
    pool.check_integrity([])


def test_free_hits_count_against_the_room_for_new_blocks() -> None:
    pool = make_pool(4)
    taken = pool.allocate((), 1) or []
    pool.release(taken)
    assert pool.allocate(taken, 3) is None
    assert len(pool.allocate(taken, 2) or []) == 2


def test_a_reserve_must_be_left_over() -> None:
    pool = make_pool(6)
    assert pool.allocate((), 4, reserve=2) is None
    assert pool.allocate((), 4, reserve=1) is not None


def test_blocks_without_a_prefix_are_reused_first() -> None:
    pool = make_pool(6)
    taken = pool.allocate((), 2) or []
    pool.release(taken)
    assert ids(pool.allocate((), 2)) == ids(taken)


def test_a_shared_block_is_free_only_after_its_last_user() -> None:
    pool = make_pool()
    taken = pool.allocate((), 1) or []
    pool.share(taken)
    pool.release(taken)
    assert pool.num_used == 1
    pool.release(taken)
    assert pool.num_used == 0


def test_releasing_twice_is_caught() -> None:
    pool = make_pool()
    taken = pool.allocate((), 1) or []
    pool.release(taken)
    with pytest.raises(AssertionError, match="more often than taken"):
        pool.release(taken)


def test_cached_blocks_are_reused_in_the_order_of_their_release_tails_first(
    make_prompts: Callable[..., Any],
) -> None:
    prompts = make_prompts(num_blocks=7, block_size=4)
    prompts.run(range(12))
    prompts.run(range(100, 112))
    assert [block.id for block in prompts.kv.pool._free] == [3, 2, 1, 6, 5, 4]


def test_a_partial_block_goes_to_the_head_and_full_ones_to_the_tail(make_prompts: Callable[..., Any]) -> None:
    prompts = make_prompts(num_blocks=6, block_size=4)
    prompts.run(range(10))
    assert [block.id for block in prompts.kv.pool._free] == [3, 4, 5, 2, 1]


def test_the_free_list_refuses_a_block_twice() -> None:
    queue, block = FreeList(), Block(1)
    queue.append(block)
    with pytest.raises(AssertionError, match="already"):
        queue.append(block)


def test_the_free_list_gives_up_a_block_from_its_middle() -> None:
    queue, blocks = FreeList(), [Block(number) for number in range(3)]
    for block in blocks:
        queue.append(block)
    queue.remove(blocks[1])
    assert list(queue) == [blocks[0], blocks[2]]
    queue.check_integrity()
