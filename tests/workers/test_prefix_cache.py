"""What a lookup finds, what it must not find, and what routers are told about it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from protocol.block_hash import BlockHasher, isolation_key
from protocol.events import Cleared, Removed, Stored
from protocol.tokens import pack_tokens

SECRET = bytes(range(24))
Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("num_tokens", "num_cached"),
    [(1, 0), (15, 0), (16, 0), (17, 16), (31, 16), (32, 16), (33, 32), (64, 48), (65, 64), (129, 128)],
)
def test_the_same_prompt_twice_hits_all_but_its_last_token(
    make_prompts: Make, num_tokens: int, num_cached: int
) -> None:
    prompts = make_prompts()
    prompts.run(range(num_tokens))
    assert prompts.match(range(num_tokens)) == num_cached


def test_a_block_can_be_hit_while_its_first_user_still_runs(make_prompts: Make) -> None:
    prompts = make_prompts()
    first = prompts.take(range(40))
    second = prompts.take(range(40))
    assert [block.id for block in second.blocks[:2]] == [block.id for block in first.blocks[:2]]
    assert second.blocks[2] is not first.blocks[2]


def test_a_lookup_stops_at_the_first_miss(make_prompts: Make) -> None:
    prompts = make_prompts()
    prompts.run(range(64))
    assert prompts.match([*range(16), 999, *range(17, 64)]) == 16


def test_the_same_tokens_behind_another_prefix_are_no_hit(make_prompts: Make) -> None:
    prompts = make_prompts()
    prompts.run(range(64))
    assert prompts.match(range(16, 64)) == 0


def test_requests_with_equal_salts_share_and_with_different_ones_do_not(make_prompts: Make) -> None:
    prompts = make_prompts()
    prompts.run(range(48), b"tenant-a")
    assert prompts.match(range(48), b"tenant-a") == 32
    assert prompts.match(range(48), b"tenant-b") == 0
    assert prompts.match(range(48)) == 0


@pytest.mark.parametrize(
    ("other", "num_cached"),
    [
        (("poet", "tenant"), 32),
        (("poet", None), 0),
        (("critic", "tenant"), 0),
        ((None, "tenant"), 0),
        ((None, None), 0),
    ],
    ids=str,
)
def test_adapter_and_salt_must_both_be_equal_for_a_hit(
    make_prompts: Make, other: tuple[str | None, str | None], num_cached: int
) -> None:
    prompts = make_prompts()
    prompts.run(range(40), isolation_key("poet", "tenant"))
    assert prompts.match(range(40), isolation_key(*other)) == num_cached


def test_a_salt_reaches_the_blocks_behind_the_first_through_the_chain(make_prompts: Make) -> None:
    prompts = make_prompts()
    prompts.run(range(64), b"a")
    prompts.run(range(64), b"b")
    assert len(prompts.kv.prefixes) == 8


def test_a_collision_of_content_costs_a_miss_and_never_gives_the_wrong_block(
    make_prompts: Make, colliding_hasher: BlockHasher
) -> None:
    prompts = make_prompts(block_size=4, hasher=colliding_hasher)
    prompts.run([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert prompts.match([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8
    assert prompts.match([1, 2, 3, 99, 5, 6, 7, 8, 9]) == 0
    prompts.run([1, 2, 3, 99, 5, 6, 7, 8, 9])
    assert prompts.match([1, 2, 3, 99, 5, 6, 7, 8, 9]) == 0
    assert prompts.match([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8


def test_a_collision_of_parents_costs_a_miss(make_prompts: Make, colliding_hasher: BlockHasher) -> None:
    prompts = make_prompts(block_size=4, hasher=colliding_hasher)
    prompts.run([1, 1, 1, 1, 5, 5, 5, 5, 0])
    prompts.run([2, 2, 2, 2, 0])
    assert prompts.match([2, 2, 2, 2, 5, 5, 5, 5, 0]) == 4


def test_a_salted_collision_costs_a_miss(make_prompts: Make, colliding_hasher: BlockHasher) -> None:
    prompts = make_prompts(block_size=4, hasher=colliding_hasher)
    prompts.run([1, 1, 1, 1, 0], b"a")
    assert prompts.match([1, 1, 1, 1, 0], b"b") == 0


def test_digests_that_came_with_the_request_are_not_computed_again(make_prompts: Make) -> None:
    prompts = make_prompts(block_size=4)
    foreign = [bytes([number]) * 16 for number in range(2)]
    table = prompts.kv.table(array("i", range(8)), list(foreign), b"")
    assert table.digests == foreign


def test_digests_are_extended_by_generated_blocks_as_if_hashed_at_once(make_prompts: Make) -> None:
    prompts = make_prompts(block_size=4)
    tokens = array("i", range(6))
    table = prompts.kv.table(tokens, [], b"salt")
    assert prompts.kv.admit(table, tokens, [])
    tokens.extend([6, 7])
    prompts.kv.fill(table, tokens, 8)
    assert table.digests == BlockHasher(SECRET, 4).digests(pack_tokens(range(8)), b"salt")


def test_eviction_takes_the_tail_of_the_oldest_chain_first(make_prompts: Make) -> None:
    prompts = make_prompts(num_blocks=7, block_size=4)
    prompts.run(range(12))
    prompts.run(range(100, 112))
    prompts.run(range(200, 204))
    assert prompts.match(range(13)) == 8
    assert prompts.match(range(100, 113)) == 12


def test_touched_blocks_are_evicted_last(make_prompts: Make) -> None:
    prompts = make_prompts(num_blocks=7, block_size=4)
    prompts.run(range(12))
    prompts.run(range(100, 112))
    prompts.kv.touch(b"".join(BlockHasher(SECRET, 4).digests(pack_tokens(range(12)))) + b"odd")
    prompts.check()
    assert [block.id for block in prompts.kv.pool._free] == [6, 5, 4, 3, 2, 1]
    prompts.run(range(200, 212))
    assert prompts.match(range(13)) == 12
    assert prompts.match(range(100, 113)) == 0


def test_what_lies_behind_an_evicted_prefix_goes_with_it(make_prompts: Make) -> None:
    prompts = make_prompts(num_blocks=5, block_size=4)
    prompts.run(range(12))
    chain = BlockHasher(SECRET, 4).digests(pack_tokens(range(12)))
    prompts.kv.touch(chain[2])
    prompts.kv.touch(chain[1])  # now the chain's head is the oldest
    prompts.kv.prefixes.events.take()
    table = prompts.take(range(100, 108))
    assert prompts.kv.prefixes.events.take()[0] == Removed(chain[0] + chain[1] + chain[2])
    assert prompts.kv.pool.num_cached == 0
    prompts.free(table)


def test_only_the_last_copy_of_a_block_is_reported_as_removed(make_prompts: Make) -> None:
    prompts = make_prompts(num_blocks=4, block_size=4)
    tokens = array("i", range(4))
    for _ in range(2):  # computed twice, as a request that bypasses the cache does
        table = prompts.kv.table(tokens, [], b"")
        assert prompts.kv.admit(table, tokens, [])
        prompts.kv.fill(table, tokens, 4)
        prompts.open.append(table)
    prompts.check()
    for table in list(prompts.open):
        prompts.free(table)
    assert len(prompts.kv.prefixes.events.take()) == 1
    prompts.run(range(100, 108))
    assert not any(isinstance(event, Removed) for event in prompts.kv.prefixes.events.take())
    prompts.run(range(200, 212))
    assert any(isinstance(event, Removed) for event in prompts.kv.prefixes.events.take())


def test_a_prompts_blocks_are_stored_as_one_event_with_their_parent(make_prompts: Make) -> None:
    prompts = make_prompts(block_size=4)
    chain = BlockHasher(SECRET, 4).digests(pack_tokens(range(16)))
    prompts.run(range(8))
    assert prompts.kv.prefixes.events.take() == (Stored(chain[0] + chain[1], None),)
    prompts.run(range(16))
    assert prompts.kv.prefixes.events.take() == (Stored(chain[2] + chain[3], chain[1]),)


def test_blocks_of_two_chains_are_stored_as_two_events(make_prompts: Make) -> None:
    prompts = make_prompts(block_size=4)
    prompts.run(range(4))
    prompts.run(range(100, 104))
    assert [event.parent for event in prompts.kv.prefixes.events.take()] == [None, None]


def test_a_snapshot_holds_every_digest_parents_first(make_prompts: Make) -> None:
    prompts = make_prompts(block_size=4)
    prompts.run(range(8))
    assert prompts.kv.prefixes.snapshot() == b"".join(BlockHasher(SECRET, 4).digests(pack_tokens(range(8))))


def test_reset_is_refused_while_blocks_are_in_use_and_says_how_many(make_prompts: Make) -> None:
    prompts = make_prompts()
    table = prompts.take(range(40))
    assert prompts.kv.reset() == 3
    prompts.free(table)
    assert prompts.match(range(40)) == 32


def test_reset_forgets_everything_and_says_so_to_the_routers(make_prompts: Make) -> None:
    prompts = make_prompts()
    prompts.run(range(40))
    assert prompts.kv.reset() == 0
    assert prompts.kv.prefixes.events.take()[-1] == Cleared()
    assert prompts.match(range(40)) == 0
    assert prompts.kv.pool.num_cached == 0
    prompts.check()


def test_switched_off_it_neither_hashes_nor_finds_nor_reports(make_prompts: Make) -> None:
    prompts = make_prompts(enabled=False)
    prompts.run(range(64))
    assert prompts.match(range(64)) == 0
    assert prompts.kv.prefixes.events.take() == ()
    assert prompts.kv.table(array("i", range(64)), [], b"").digests == []
