"""Plans made while the one before still runs: its tokens are unknown, and what it draws may be nobody's any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.messages import FinishReason

Make = Callable[..., Any]


def test_a_row_decodes_again_before_its_token_is_known(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(depth=2)
    name = driver.add(range(20), max_tokens=5)
    driver.step()
    assert driver.step().num_decodes == 1
    assert driver.tokens_of(name) == expected_tokens(range(20), 1)


def test_nothing_is_planned_beyond_the_last_token(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(depth=2)
    name = driver.add(range(20), max_tokens=5)
    driver.run()
    assert driver.tokens_of(name) == expected_tokens(range(20), 5)
    assert sum(plan.num_drawn for plan in driver.plans) == 5


def test_what_is_drawn_behind_an_end_of_sequence_is_dropped(make_driver: Make, expected_tokens: Make) -> None:
    tokens = expected_tokens(range(20), 9)
    driver = make_driver(depth=2, eos=(tokens[3],))
    name = driver.add(range(20), max_tokens=9)
    driver.run()
    assert driver.tokens_of(name) == tokens[:4]
    assert driver.last_of(name).finish_reason is FinishReason.STOP
    assert sum(plan.num_drawn for plan in driver.plans) == 5
    assert driver.scheduler.load().num_used_blocks == 0


def test_a_block_that_generated_tokens_fill_is_registered_a_step_later(make_driver: Make) -> None:
    driver = make_driver(depth=2)
    driver.add(range(14), max_tokens=30)
    for _ in range(5):
        driver.step()
    assert driver.scheduler.load().num_used_blocks == 2
    assert len(driver.scheduler.snapshot()) == 16
    driver.run()
    assert len(driver.scheduler.snapshot()) == 2 * 16  # 43 of 44 tokens have KV


def test_the_next_turn_reuses_what_overlapped_steps_generated(make_driver: Make) -> None:
    driver = make_driver(depth=2)
    first = driver.add(range(20), max_tokens=30)
    driver.run()
    conversation = [*range(20), *driver.tokens_of(first), 7, 8, 9]
    second = driver.add(conversation)
    driver.run()
    assert driver.last_of(second).num_cached_tokens == (20 + 30 - 1) // 16 * 16


def test_a_preempted_row_draws_the_dropped_token_again(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(depth=2, num_blocks=8, block_size=4)
    first = driver.add(range(8), max_tokens=12)
    second = driver.add(range(50, 58), max_tokens=12)
    driver.run()
    assert driver.scheduler.load().num_preemptions > 0
    assert driver.tokens_of(first) == expected_tokens(range(8), 12)
    assert driver.tokens_of(second) == expected_tokens(range(50, 58), 12)


def test_an_aborted_row_may_be_taken_while_its_last_step_runs(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver(depth=2, max_num_seqs=1)
    driver.add(range(20), "gone", max_tokens=50)
    driver.step()
    driver.step()
    driver.scheduler.abort("gone")
    name = driver.add(range(100, 120), max_tokens=4)
    driver.run()
    assert driver.tokens_of(name) == expected_tokens(range(100, 120), 4)
