"""The simulated block cache against the product's pool and prefix cache, and by itself."""

from __future__ import annotations

import random
from array import array

import pytest

from protocol.block_hash import SECRET_BYTES, BlockHasher
from simulator.block_cache import BlockCache
from simulator.comparison import simulate
from simulator.holders import Holders, match_any
from simulator.policies.registry import ORDERS, POLICIES
from simulator.simulation import Deployment
from simulator.trace import BLOCK_TOKENS, TraceRequest
from workers.kv.kv_cache import KvCache

SCALE = 32  # the product runs with blocks of BLOCK_TOKENS / SCALE tokens: the same hits, less to hash
SIZE = BLOCK_TOKENS // SCALE


def product_hits(requests: list[TraceRequest], num_blocks: int) -> list[int]:
    """Blocks found by each of these in turn, in a cache of so many blocks beside the partial one in use."""
    kv = KvCache(num_blocks + 2, BlockHasher(bytes(SECRET_BYTES), SIZE))  # and the null block
    hits = []
    for request in requests:
        full, partial = request.blocks[:-1], request.blocks[-1]
        tokens = array("i", [block for block in full for _ in range(SIZE)] + [partial])
        table = kv.table(tokens, [], b"")
        matched = kv.lookup(table, tokens)
        assert kv.admit(table, tokens, matched)
        kv.fill(table, tokens, len(tokens))
        kv.release(table)
        kv.check_integrity([])
        hits.append(len(matched))
    return hits


def simulated_hits(requests: list[TraceRequest], num_blocks: int) -> list[int]:
    cache = BlockCache(num_blocks, Holders(1), (0,))
    hits = []
    for request in requests:
        full = request.blocks[:-1]
        depth = cache.reach(full)
        cache.pin(full[:depth])
        cache.insert(full, depth)
        cache.release(full)
        cache.check_integrity()
        hits.append(depth)
    return hits


@pytest.mark.parametrize("num_blocks", [70, 100, 160, 2000])
def test_hits_are_those_of_the_products_pool_and_prefix_cache(
    sequential_trace: list[TraceRequest], num_blocks: int
) -> None:
    hits = simulated_hits(sequential_trace, num_blocks)
    assert hits == product_hits(sequential_trace, num_blocks) and sum(hits) > 0


def test_small_caches_of_that_trace_do_evict(sequential_trace: list[TraceRequest]) -> None:
    assert sum(simulated_hits(sequential_trace, 80)) < sum(simulated_hits(sequential_trace, 2000))


def test_a_whole_simulation_has_the_hits_of_the_product(sequential_trace: list[TraceRequest]) -> None:
    policy, order = "least-tokens", "first-come"
    row = simulate(
        sequential_trace, Deployment(1, 10_000), (policy, POLICIES[policy]), (order, ORDERS[order])
    )
    num_tokens = sum(request.num_tokens for request in sequential_trace)
    expected = BLOCK_TOKENS * sum(product_hits(sequential_trace, 10_000)) / num_tokens
    assert row.hit_rate == pytest.approx(expected)


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache = BlockCache(4, Holders(1), (0,))
    for chain in ((1, 2), (3, 4), (5,)):
        cache.insert(chain, 0)
        cache.release(chain)
    assert [cache.reach(chain) for chain in ((1, 2), (3, 4), (5,))] == [1, 2, 1]


def test_touched_blocks_outlive_newer_ones() -> None:
    cache = BlockCache(4, Holders(1), (0,))
    for chain in ((1, 2), (3, 4)):
        cache.insert(chain, 0)
        cache.release(chain)
    cache.touch((1, 2))
    cache.insert((5,), 0)
    assert (cache.reach((1, 2)), cache.reach((3, 4))) == (2, 1)


def test_pinned_blocks_stay_beyond_the_capacity_until_they_are_released() -> None:
    cache = BlockCache(2, Holders(1), (0,))
    cache.insert((1, 2), 0)
    cache.insert((3, 4), 0)
    assert (len(cache), cache.num_pinned, cache.reach((1, 2))) == (4, 4, 2)
    cache.release((1, 2))
    cache.check_integrity()
    assert (len(cache), cache.reach((1, 2)), cache.reach((3, 4))) == (2, 0, 2)


def any_chain(rng: random.Random) -> tuple[int, ...]:
    """The head of one of four."""
    first = 100 * rng.randrange(4)
    return tuple(range(first, first + rng.randint(1, 15)))


def test_a_random_walk_keeps_the_cache_whole_and_its_holders_right() -> None:
    rng, holders = random.Random(3), Holders(2)
    caches = [BlockCache(30, holders, (replica,)) for replica in range(2)]
    running: list[tuple[BlockCache, tuple[int, ...]]] = []
    for _ in range(400):
        cache = rng.choice(caches)
        if running and rng.random() < 0.5:
            ended, chain = running.pop(rng.randrange(len(running)))
            ended.release(chain)
        else:
            chain = any_chain(rng)
            depth = cache.reach(chain, guess=rng.randint(0, 20))
            cache.pin(chain[:depth])
            cache.insert(chain, depth)
            running.append((cache, chain))
        for each in caches:
            each.check_integrity()
        chain = any_chain(rng)
        assert holders.match(chain) == [each.reach(chain) for each in caches]


def test_a_match_may_be_held_by_one_index_or_another() -> None:
    assert match_any(({1: 0b11, 2: 0b01}, {2: 0b10, 3: 0b10}), (1, 2, 3, 4), 3) == [2, 3, 0]
