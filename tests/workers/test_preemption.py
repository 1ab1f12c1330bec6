"""Who is preempted or aborted, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.messages import FinishReason
from protocol.tokens import pack_tokens
from workers.scheduling.admission_orders import FirstComeFirstServed

Make = Callable[..., Any]


def test_an_aborted_provider_keeps_nobody_waiting(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(160), "begun", priority=1)
    driver.step()
    driver.add(range(160), "same", priority=0)
    driver.step()
    driver.scheduler.abort("begun")
    driver.run()
    assert driver.tokens_of("same") == expected_tokens(range(160), 4)


def test_a_preempted_request_resumes_with_the_tokens_it_had(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4)
    first, second = driver.add(range(12), max_tokens=16), driver.add(range(100, 112), max_tokens=16)
    driver.run()
    assert driver.scheduler.load().num_preemptions > 0
    assert any(start.generated for plan in driver.plans for start in plan.starts)
    assert driver.tokens_of(first) == expected_tokens(range(12), 16)
    assert driver.tokens_of(second) == expected_tokens(range(100, 112), 16)


def test_preemption_takes_the_lowest_class_and_in_it_the_last_admitted(make_driver: Make) -> None:
    driver = make_driver(num_blocks=13, block_size=4, max_num_seqs=4)
    driver.add(range(12), "low", priority=1, max_tokens=12)
    driver.add(range(100, 112), "high", priority=0, max_tokens=12)
    driver.add(range(200, 212), "later", priority=0, max_tokens=12)
    while driver.scheduler.load().num_preemptions == 0:
        driver.step()
    ended = [row for plan in driver.plans for row in plan.ends]
    low = next(start.row for start in driver.plans[0].starts if start.prompt == pack_tokens(range(12)))
    assert ended == [low]
    driver.run()


def test_preemption_does_not_change_what_was_reported_as_cached(make_driver: Make) -> None:
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4)
    names = [driver.add(range(12), max_tokens=16), driver.add(range(100, 112), max_tokens=16)]
    driver.run()
    assert driver.scheduler.kv.resumed_counts.hit > 0
    assert [driver.last_of(name).num_cached_tokens for name in names] == [0, 0]


def test_in_order_of_arrival_a_small_request_does_not_overtake_one_that_waits_for_blocks(
    make_driver: Make,
) -> None:
    order = FirstComeFirstServed()
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4, order=order)
    driver.add(range(20), "running", max_tokens=4)
    driver.step()
    driver.add(range(100, 120), "large", max_tokens=4)
    driver.add(range(200, 204), "small", max_tokens=4)
    driver.run()
    firsts = list(dict.fromkeys(output.request_id for output in driver.outputs))
    assert firsts == ["running", "large", "small"]
    assert driver.scheduler.load().num_preemptions == 0


def test_lookups_after_preemption_are_counted_apart(make_driver: Make) -> None:
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4)
    driver.add(range(12), max_tokens=16)
    driver.add(range(100, 112), max_tokens=16)
    driver.run()
    assert driver.scheduler.kv.counts.queried == 24
    assert driver.scheduler.kv.resumed_counts.queried > 12


def test_an_abort_frees_everything_at_any_moment(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    for number_of_steps in range(8):
        name = driver.add(range(100), n=3, max_tokens=20)
        for _ in range(number_of_steps):
            driver.step()
        aborted = driver.scheduler.abort(name)
        assert [output.finish_reason for output in aborted] == [FinishReason.ABORT] * 3
        driver.scheduler.check_integrity()
        assert driver.scheduler.load().num_used_blocks == 0
        driver.step()


def test_an_abort_between_plan_and_completion_gets_no_token(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(20), "gone")
    driver.add(range(100, 120), "stays")
    plan = driver.scheduler.schedule()
    driver.scheduler.abort("gone")
    outputs = driver.scheduler.complete(driver.runner.launch(plan)).outputs
    assert [output.request_id for output in outputs] == ["stays"]
    driver.scheduler.check_integrity()


def test_aborting_the_unknown_does_nothing(make_driver: Make) -> None:
    assert make_driver().scheduler.abort("nobody") == []
