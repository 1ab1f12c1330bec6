"""What a better priority class may take from a worse one, and what waiting gives the worse one back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.errors import InvalidRequest
from workers.scheduling.scheduler_config import SchedulerConfig

Make = Callable[..., Any]


def running(driver: Any, name: str) -> bool:
    """Between two steps."""
    return any(each.row is not None for each in driver.scheduler._requests[name].sequences)


def test_a_better_class_takes_a_row_from_a_worse_one_which_still_finishes(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver(max_num_seqs=2)
    low = [driver.add(range(first, first + 20), max_tokens=30, priority=1) for first in (0, 100)]
    for _ in range(5):
        driver.step()
    urgent = driver.add(range(200, 220), priority=0)
    driver.step()
    assert driver.tokens_of(urgent) == expected_tokens(range(200, 220), 1)
    assert [running(driver, name) for name in low] == [True, False]
    driver.run()
    assert driver.scheduler.load().num_preemptions == 1
    for name, first in zip(low, (0, 100), strict=True):
        assert driver.tokens_of(name) == expected_tokens(range(first, first + 20), 30)


def test_a_better_class_takes_as_many_blocks_as_it_needs_and_no_more(make_driver: Make) -> None:
    driver = make_driver(num_blocks=17, block_size=4, max_num_seqs=8)
    low = [driver.add(range(100 * number, 100 * number + 15), priority=1) for number in range(4)]
    driver.step()
    assert driver.scheduler.load().num_used_blocks == 16
    driver.add(range(500, 528), "urgent", priority=0, max_tokens=1)
    driver.step()
    assert driver.last_of("urgent").finish_reason is not None
    assert [running(driver, name) for name in low] == [True, True, False, False]
    driver.run()


def test_nobody_leaves_when_all_of_the_worse_classes_would_not_make_room(make_driver: Make) -> None:
    driver = make_driver(num_blocks=17, block_size=4, max_num_seqs=8)
    driver.add(range(100, 140), "same class", priority=0, max_tokens=4)
    driver.add(range(15), "worse", priority=1, max_tokens=8)
    driver.step()
    driver.add(range(500, 528), "urgent", priority=0)
    for _ in range(2):
        driver.step()
        assert running(driver, "worse") and not running(driver, "urgent")
    driver.run()
    assert driver.scheduler.load().num_preemptions == 0


def test_a_better_class_shares_the_blocks_of_the_one_that_it_displaces(make_driver: Make) -> None:
    driver = make_driver(num_blocks=12, block_size=4, max_num_seqs=8)
    driver.add(range(40), "worse", priority=1)
    driver.step()
    driver.add(range(43), "urgent", priority=0, max_tokens=1)
    driver.step()
    assert driver.scheduler.load().num_preemptions == 1
    assert driver.last_of("urgent").num_cached_tokens == 40
    driver.run()
    assert driver.scheduler.load().num_preemptions == 1


def test_blocks_shared_with_one_that_stays_need_not_be_taken_from_anybody(make_driver: Make) -> None:
    driver = make_driver(num_blocks=14, block_size=4, max_num_seqs=8)
    driver.add(range(41), "stays", priority=0, max_tokens=3)
    low = [driver.add([500 + number] * 3, priority=1) for number in range(2)]
    driver.step()
    assert driver.scheduler.load().num_used_blocks == 13
    driver.add(range(43), "urgent", priority=0, max_tokens=1)
    driver.step()
    assert driver.last_of("urgent").num_cached_tokens == 40
    assert [running(driver, name) for name in low] == [True, False]
    driver.run()


@pytest.mark.parametrize("priority", [0, 1])
def test_neither_an_equal_nor_a_worse_class_displaces_anybody(make_driver: Make, priority: int) -> None:
    driver = make_driver(max_num_seqs=1)
    driver.step_s = 10.0  # whoever waits grows old, which gives no right to displace
    driver.add(range(20), "first", max_tokens=30)
    driver.step()
    driver.add(range(100, 120), "second", priority=priority)
    driver.run()
    assert driver.scheduler.load().num_preemptions == 0
    assert [each.request_id for each in driver.outputs if each.finish_reason] == ["first", "second"]


def test_one_of_a_better_class_that_waits_for_a_begun_prefill_displaces_nobody(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=2, max_num_batched_tokens=100)
    driver.add(range(300, 310), "worse", priority=1, max_tokens=20)
    driver.step()
    driver.add(range(160), "begun", priority=0)
    driver.step()
    driver.add(range(160), "same", priority=0)
    driver.step()
    assert driver.scheduler.load().num_preemptions == 0
    driver.run()
    assert driver.last_of("same").num_cached_tokens == 144


def test_a_row_that_is_about_to_be_free_is_waited_for(make_driver: Make) -> None:
    driver = make_driver(depth=2, max_num_seqs=2)
    driver.add(range(20), "ending", priority=0, max_tokens=2)
    driver.add(range(100, 120), "worse", priority=1, max_tokens=20)
    driver.step()
    driver.step()
    driver.add(range(200, 220), "urgent", priority=0)
    driver.run()
    assert driver.scheduler.load().num_preemptions == 0
    assert driver.last_of("urgent").finish_reason is not None


def test_a_held_prompt_is_let_go_before_anybody_is_displaced(make_driver: Make) -> None:
    driver = make_driver(num_blocks=15, block_size=4, max_num_seqs=2)
    driver.add(range(26), "two", n=2, max_tokens=3, priority=1)
    driver.add(range(100, 108), "worse", max_tokens=20, priority=1)
    driver.step()
    driver.step()
    driver.step()
    assert driver.scheduler.load().num_used_blocks > 9  # seven of them for the sequence that has not started
    driver.add(range(200, 238), "urgent", priority=0, max_tokens=1)
    driver.step()
    driver.step()
    assert driver.last_of("urgent").finish_reason is not None
    driver.run()


def stream_of_better_ones(driver: Any, steps: range) -> None:
    """One row, and always somebody of a better class who wants it."""
    for step in steps:
        driver.add(range(100 + step, 120 + step), f"better-{step}", priority=0, max_tokens=2)
        driver.step()


def test_a_low_class_gets_its_turn_once_it_has_waited(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(max_num_seqs=1, num_blocks=256, priority_ageing_s=2.0)
    driver.step_s = 0.1
    driver.add(range(20), "low", priority=2, max_tokens=4)
    stream_of_better_ones(driver, range(39))
    assert driver.tokens_of("low") == []
    stream_of_better_ones(driver, range(39, 60))
    assert driver.tokens_of("low") == expected_tokens(range(20), 4)
    driver.run()


def test_without_ageing_a_low_class_waits_until_the_better_ones_are_done(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=1, num_blocks=256, priority_ageing_s=None)
    driver.step_s = 1.0
    driver.add(range(20), "low", priority=2, max_tokens=4)
    stream_of_better_ones(driver, range(200))
    assert driver.tokens_of("low") == []
    driver.run()
    assert driver.outputs[-1].request_id == "low"


def test_who_was_let_in_for_having_waited_is_not_displaced_by_the_next(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=1, priority_ageing_s=2.0)
    driver.add(range(20), "better", priority=0, max_tokens=30)
    driver.step()
    driver.add(range(100, 120), "low", priority=1, max_tokens=30)
    driver.step_s = 0.1
    while not running(driver, "low"):
        driver.step()
    driver.add(range(200, 220), "next", priority=0)
    driver.run()
    assert driver.scheduler.load().num_preemptions == 0
    ends = [each.request_id for each in driver.outputs if each.finish_reason]
    assert ends == ["better", "low", "next"]


def test_who_decoded_before_it_was_preempted_waits_anew(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=1, priority_ageing_s=2.0)
    driver.step_s = 0.1
    driver.add(range(20), "low", priority=1, max_tokens=60)
    for _ in range(50):
        driver.step()
    for number in range(3):
        driver.add(range(100 * number, 100 * number + 20), f"better-{number}", priority=0)
    driver.run()
    ends = [each.request_id for each in driver.outputs if each.finish_reason]
    assert ends == ["better-0", "better-1", "better-2", "low"]


@pytest.mark.parametrize("ageing_s", [0.0, -1.0, float("nan")])
def test_an_ageing_of_no_time_is_refused(ageing_s: float) -> None:
    with pytest.raises(InvalidRequest, match="None for no ageing"):
        SchedulerConfig(priority_ageing_s=ageing_s)
