"""What a waiting request will hit is not evicted while it waits: its arrival refreshes the blocks' age."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]
OLD, NEWER = range(12), range(100, 112)


@pytest.fixture
def crowded(make_driver: Make) -> Any:
    """One row, which is taken; ten blocks: `OLD` and `NEWER` have three each, the others are needed soon."""
    driver = make_driver(num_blocks=11, block_size=4, max_num_seqs=1)
    driver.add(OLD, max_tokens=1)
    driver.run()
    driver.add(NEWER, max_tokens=1)
    driver.run()
    driver.add(range(200, 204), max_tokens=24)  # takes seven blocks by its end
    driver.step()
    return driver


def test_the_blocks_that_a_waiting_request_matches_are_reused_last(crowded: Any) -> None:
    waiting = crowded.add([*OLD, 50], max_tokens=1)
    crowded.run()
    assert crowded.last_of(waiting).num_cached_tokens == 12


def test_without_a_request_that_waits_the_oldest_go_first(crowded: Any) -> None:
    crowded.run()
    late = crowded.add([*OLD, 50], max_tokens=1)
    crowded.run()
    assert crowded.last_of(late).num_cached_tokens == 0


def test_a_request_that_may_not_read_the_cache_refreshes_nothing(crowded: Any) -> None:
    before = [block.id for block in crowded.scheduler.kv.pool._free]
    crowded.add([*OLD, 50], max_tokens=1, prompt_logprobs=0)
    assert [block.id for block in crowded.scheduler.kv.pool._free] == before
