"""A request's `n` sequences share its prompt's blocks, and copy one at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.block_hash import BlockHasher
from protocol.messages import FinishReason
from protocol.tokens import pack_tokens
from workers.scheduling.sequence import sequence_seed

Make = Callable[..., Any]


def test_more_sequences_share_the_prompt_and_copy_only_its_last_block(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver()
    name = driver.add(range(40), n=3)
    driver.step()
    plan = driver.step()
    assert len(plan.copies) == 2
    assert [row.start for row in driver.runner.steps[-1]] == [40, 39, 39]
    shared = driver.plans[0].grown[0][1]
    assert [blocks[:2] for _, blocks in plan.grown] == [shared[:2]] * 2
    assert {source for source, _ in plan.copies} == {shared[2]}
    driver.run()
    for index in range(3):
        assert driver.tokens_of(name, index) == expected_tokens(range(40), 4, sequence_seed(7, index))


def test_a_block_with_the_last_prompt_token_alone_is_not_copied(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(33), n=2)
    driver.run()
    assert not any(plan.copies for plan in driver.plans)
    assert driver.runner.num_computed == 33 + 1 + 2 * 3


def test_sequences_share_the_prompt_even_when_the_first_ends_at_once(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(40), n=4, max_tokens=1)
    driver.run()
    assert driver.runner.num_computed == 40 + 3
    assert len(driver.outputs) == 4


def test_sequences_share_the_prompt_without_prefix_caching(make_driver: Make) -> None:
    driver = make_driver(enable_prefix_caching=False)
    driver.add(range(40), n=3)
    driver.run()
    assert driver.runner.num_computed == 40 + 2 + 3 * 3


def test_more_sequences_than_the_pool_holds_run_one_after_another(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver(num_blocks=6, block_size=4, max_num_seqs=4)
    name = driver.add(range(14), n=4, max_tokens=7)
    driver.run()
    for index in range(4):
        assert driver.tokens_of(name, index) == expected_tokens(range(14), 7, sequence_seed(7, index))


def test_sequences_share_a_prompt_whose_blocks_could_not_be_registered(
    make_driver: Make, colliding_hasher: BlockHasher
) -> None:
    driver = make_driver(block_size=4, hasher=colliding_hasher)
    driver.add([1, 1, 1, 1, 5, 5, 5, 5, 0])
    driver.add([2, 2, 2, 2, 5, 6, 6, 6, 0, 0], n=3, max_tokens=8)
    driver.run()
    assert driver.scheduler.reset_prefix_cache() == 0


def test_a_moved_request_with_more_sequences_resumes_each(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver()
    whole = [expected_tokens(range(40), 8, sequence_seed(7, index)) for index in range(3)]
    generated = tuple(pack_tokens(tokens[:count]) for tokens, count in zip(whole, (0, 3, 8), strict=True))
    name = driver.add(range(40), n=3, max_tokens=8, generated=generated)
    driver.run()
    assert [driver.tokens_of(name, index) for index in range(3)] == [whole[0], whole[1][3:], []]


def test_sequences_that_ended_before_a_move_do_not_run_again(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver()
    whole = [expected_tokens(range(40), 8, sequence_seed(7, index)) for index in range(3)]
    generated = tuple(pack_tokens(tokens[:3]) for tokens in whole)
    name = driver.add(range(40), n=3, max_tokens=8, generated=generated, finished=(0,))
    driver.run()
    assert [driver.tokens_of(name, index) for index in range(3)] == [[], whole[1][3:], whole[2][3:]]
    assert driver.last_of(name, 2).finish_reason is FinishReason.LENGTH


def test_the_first_sequence_keeps_the_requests_seed_and_the_others_differ() -> None:
    seeds = [sequence_seed(seed, index) for seed in (0, 1, -1, 2**63 - 1) for index in range(128)]
    assert sequence_seed(-5, 0) == -5
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_a_sequence_that_is_stopped_frees_its_own_blocks_and_its_siblings_go_on(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver()
    name = driver.add(range(40), n=2)
    driver.step()
    driver.step()
    used = driver.scheduler.load().num_used_blocks
    ended = driver.scheduler.abort(name, 0)
    assert [(output.index, output.finish_reason) for output in ended] == [(0, FinishReason.ABORT)]
    assert driver.scheduler.load().num_used_blocks < used
    driver.run()
    assert driver.tokens_of(name, 1) == expected_tokens(range(40), 4, sequence_seed(7, 1))


def test_a_sequence_is_not_stopped_while_it_computes_the_prompt_for_the_others(make_driver: Make) -> None:
    driver = make_driver()
    name = driver.add(range(40), n=2)
    assert driver.scheduler.abort(name, 0) == []
    driver.run()
    assert len(driver.tokens_of(name, 1)) == 4
