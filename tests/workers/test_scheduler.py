"""What a step holds, who gets it, and how sequences end. The memory runner checks every read of KV besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.messages import FinishReason

Make = Callable[..., Any]


def test_a_request_gets_the_tokens_that_the_model_gives(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver()
    name = driver.add(range(40), max_tokens=6)
    driver.run()
    assert driver.tokens_of(name) == expected_tokens(range(40), 6)
    assert driver.last_of(name).finish_reason is FinishReason.LENGTH
    assert driver.scheduler.load().num_used_blocks == 0


def test_a_long_prompt_is_computed_in_chunks_within_the_budget(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(100), max_tokens=1)
    driver.run()
    assert [plan.num_prefill_tokens for plan in driver.plans] == [32, 32, 32, 4]
    assert [plan.chunks[0].sample for plan in driver.plans] == [False, False, False, True]


def test_decodes_go_first_and_prefill_gets_the_rest_of_the_budget(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(8), max_tokens=9)
    driver.step()
    driver.add(range(100, 200))
    driver.step()
    assert [(len(row.token_ids), row.sample) for row in driver.runner.steps[-1]] == [(1, True), (31, False)]


def test_requests_that_fit_are_prefilled_in_one_step(make_driver: Make) -> None:
    driver = make_driver()
    for first in (0, 100, 200):
        driver.add(range(first, first + 20))
    assert len(driver.step().chunks) == 3


def test_no_more_sequences_run_than_there_are_rows(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=2)
    for first in (0, 100, 200):
        driver.add(range(first, first + 20))
    assert {chunk.row for chunk in driver.step().chunks} == {0, 1}
    assert driver.scheduler.load().num_waiting == 1
    driver.run()
    assert len({output.request_id for output in driver.outputs}) == 3


def test_a_better_priority_class_is_admitted_first(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=1)
    driver.add(range(20), "late", priority=5)
    driver.add(range(100, 120), "early", priority=-1)
    driver.run()
    assert driver.outputs[0].request_id == "early"


def test_a_new_request_of_a_better_class_overtakes_a_begun_prefill(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(100), "long", priority=1)
    driver.step()
    driver.add(range(100, 120), "urgent", priority=0)
    driver.step()
    assert driver.outputs[0].request_id == "urgent"


def test_no_more_prefills_of_a_class_are_begun_than_allowed(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=16, max_num_seqs=8, max_begun_prefills=1)
    driver.add(range(100), priority=1)
    driver.step()
    driver.add(range(100, 200), priority=0)
    driver.step()
    driver.add(range(200, 300), priority=-1)
    driver.step()
    assert driver.scheduler.load().num_running == 3
    driver.add(range(300, 400), priority=-1)
    driver.step()
    assert driver.scheduler.load().num_running == 3


def test_kv_exists_for_all_tokens_but_the_last_drawn(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(10), max_tokens=7)
    driver.run()
    assert driver.runner.num_computed == 10 + 7 - 1


@pytest.mark.parametrize(
    ("num_prompt", "num_output", "num_cached"), [(20, 12, 16), (20, 13, 32), (16, 17, 32)]
)
def test_the_next_turn_reuses_generated_blocks(
    make_driver: Make, num_prompt: int, num_output: int, num_cached: int
) -> None:
    driver = make_driver()
    first = driver.add(range(num_prompt), max_tokens=num_output)
    driver.run()
    second = driver.add([*range(num_prompt), *driver.tokens_of(first), *range(900, 950)])
    driver.run()
    assert driver.last_of(second).num_cached_tokens == num_cached


def test_a_block_that_fills_can_be_hit_in_the_same_step(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(40))
    second = driver.add(range(40))
    plan = driver.step()
    assert [chunk.start for chunk in plan.chunks] == [0, 32]
    assert plan.grown[0][1][:2] == plan.grown[1][1][:2]
    driver.run()
    assert driver.last_of(second).num_cached_tokens == 32


def test_two_identical_cold_prompts_are_prefilled_once(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    first, second = driver.add(range(160)), driver.add(range(160))
    driver.run()
    assert driver.runner.num_computed == 160 + 16 + 2 * 3
    assert driver.tokens_of(first) == driver.tokens_of(second) == expected_tokens(range(160), 4)


def test_a_prompt_waits_for_the_blocks_that_a_begun_prefill_is_about_to_fill(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(160), "begun", priority=1)
    driver.step()
    driver.add(range(160), "same", priority=0)
    driver.run()
    assert driver.runner.num_computed == 160 + 16 + 2 * 3
    assert driver.last_of("same").num_cached_tokens == 144


def test_waiting_for_another_prefill_is_bounded(make_driver: Make) -> None:
    driver = make_driver(num_blocks=256, max_num_batched_tokens=32, max_num_seqs=8)
    driver.add(range(64), "begun", priority=9)
    driver.step()
    driver.add(range(64), "same", priority=5)
    for number in range(6):  # these leave too little for the begun one to end as soon as expected
        driver.add(range(100 + 30 * number, 130 + 30 * number), priority=0, max_tokens=1)
        driver.step()
    same = [output for output in driver.outputs if output.request_id == "same"]
    begun = [output for output in driver.outputs if output.request_id == "begun"]
    assert not same and not begun
    driver.run()
    order = [output.request_id for output in driver.outputs if output.request_id in ("same", "begun")]
    assert order[0] == "same"


def test_prompt_logprobs_bypass_the_cache_but_fill_it(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(40))
    driver.run()
    scored = driver.add(range(40), prompt_logprobs=1)
    driver.run()
    assert driver.last_of(scored).num_cached_tokens == 0
    assert driver.scheduler.kv.counts.bypassed == 40


def test_counters_tell_why_tokens_were_missed(make_driver: Make) -> None:
    driver = make_driver(num_blocks=5)
    kv = driver.scheduler.kv
    driver.add(range(40), max_tokens=1)
    driver.run()
    assert (kv.counts.absent, kv.counts.below_block) == (32, 8)
    driver.add(range(40), max_tokens=1)
    driver.run()
    assert kv.counts.hit == 32
    driver.add(range(100, 164), max_tokens=1)
    driver.run()
    driver.add(range(40), max_tokens=1)
    driver.run()
    assert kv.counts.evicted == 32


def test_the_load_counts_what_is_waiting_and_not_cached(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(64), max_tokens=1)
    driver.run()
    driver.add(range(100))
    assert driver.scheduler.load().waiting_prefill_tokens == 100 - 64
    driver.step()
    assert driver.scheduler.load().waiting_prefill_tokens == 4
    assert driver.scheduler.load().num_running == 1
