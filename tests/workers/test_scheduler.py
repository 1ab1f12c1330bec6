"""What a step holds, who gets it, and how sequences end. The memory runner checks every read of KV besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.errors import ContextLengthExceeded, InvalidRequest
from protocol.messages import FinishReason, Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.request import Request
from workers.scheduler import SchedulerConfig
from workers.sequence import sequence_seed

Make = Callable[..., Any]
SECRET = bytes(range(24))


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
    assert [plan.num_tokens for plan in driver.plans] == [32, 32, 32, 4]
    assert [plan.rows[0].sample for plan in driver.plans] == [False, False, False, True]


def test_decodes_go_first_and_prefill_gets_the_rest_of_the_budget(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(8), max_tokens=9)
    driver.step()
    driver.add(range(100, 200))
    plan = driver.step()
    assert [len(row.token_ids) for row in plan.rows] == [1, 31]
    assert [row.sample for row in plan.rows] == [True, False]


def test_requests_that_fit_are_prefilled_in_one_step(make_driver: Make) -> None:
    driver = make_driver()
    for first in (0, 100, 200):
        driver.add(range(first, first + 20))
    assert len(driver.step().rows) == 3


def test_no_more_sequences_run_than_there_are_rows(make_driver: Make) -> None:
    driver = make_driver(max_num_seqs=2)
    for first in (0, 100, 200):
        driver.add(range(first, first + 20))
    assert {row.row for row in driver.step().rows} == {0, 1}
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


def test_at_most_two_prefills_of_a_class_are_begun_at_a_time(make_driver: Make) -> None:
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
    assert [row.start for row in plan.rows] == [0, 32]
    assert plan.rows[0].new_blocks[:2] == plan.rows[1].new_blocks[:2]
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


def test_what_was_preempted_is_not_admitted_again_in_the_same_step(make_driver: Make) -> None:
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4)
    driver.add(range(12), max_tokens=16)
    driver.add(range(100, 112), max_tokens=16)
    driver.run()
    assert not any(plan.ends and plan.starts and len(plan.rows) > 1 for plan in driver.plans)


def test_preemption_does_not_change_what_was_reported_as_cached(make_driver: Make) -> None:
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4)
    names = [driver.add(range(12), max_tokens=16), driver.add(range(100, 112), max_tokens=16)]
    driver.run()
    assert driver.scheduler.kv.resumed_counters.hit > 0
    assert [driver.last_of(name).num_cached_tokens for name in names] == [0, 0]


def test_a_small_request_does_not_overtake_one_that_waits_for_blocks(make_driver: Make) -> None:
    driver = make_driver(num_blocks=9, block_size=4, max_num_seqs=4)
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
    assert driver.scheduler.kv.counters.queried == 24
    assert driver.scheduler.kv.resumed_counters.queried > 12


def test_a_moved_request_goes_on_from_its_generated_tokens(make_driver: Make, expected_tokens: Make) -> None:
    driver = make_driver()
    whole = expected_tokens(range(20), 10)
    name = driver.add(range(20), max_tokens=10, generated=(pack_tokens(whole[:6]),))
    driver.run()
    assert driver.tokens_of(name) == whole[6:]


def test_a_request_moved_after_its_last_token_ends_without_another(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver()
    name = driver.add(range(20), max_tokens=5, generated=(pack_tokens(expected_tokens(range(20), 5)),))
    driver.run()
    assert driver.tokens_of(name) == []
    assert driver.last_of(name).finish_reason is FinishReason.LENGTH


def test_end_of_sequence_ends_it_and_is_among_its_tokens(make_driver: Make, expected_tokens: Make) -> None:
    tokens = expected_tokens(range(20), 10)
    driver = make_driver(eos=(tokens[3],))
    name = driver.add(range(20), max_tokens=10)
    driver.run()
    assert driver.tokens_of(name) == tokens[:4]
    assert driver.last_of(name).finish_reason is FinishReason.STOP
    assert driver.last_of(name).stop_token_id is None


def test_a_stop_id_ends_it_and_is_named(make_driver: Make, expected_tokens: Make) -> None:
    tokens = expected_tokens(range(20), 10)
    driver = make_driver()
    name = driver.add(range(20), max_tokens=10, stop_token_ids=[tokens[2]])
    driver.run()
    assert driver.last_of(name).stop_token_id == tokens[2]
    assert len(driver.tokens_of(name)) == 3


@pytest.mark.parametrize("wishes", [{"ignore_eos": True}, {"min_tokens": 4}])
def test_end_of_sequence_is_passed_over(make_driver: Make, expected_tokens: Make, wishes: Any) -> None:
    tokens = expected_tokens(range(20), 10)
    driver = make_driver(eos=(tokens[3],))
    name = driver.add(range(20), max_tokens=10, **wishes)
    driver.run()
    assert driver.tokens_of(name) == tokens


def test_no_max_tokens_means_the_rest_of_the_context(make_driver: Make) -> None:
    driver = make_driver(max_model_len=50)
    name = driver.add(range(20), max_tokens=None)
    driver.run()
    assert len(driver.tokens_of(name)) == 30
    assert driver.last_of(name).finish_reason is FinishReason.LENGTH


def test_no_tokens_wanted_computes_the_prompt_and_ends(make_driver: Make) -> None:
    driver = make_driver()
    name = driver.add(range(32), max_tokens=0)
    driver.run()
    assert driver.tokens_of(name) == []
    assert driver.last_of(name).finish_reason is FinishReason.LENGTH
    assert driver.runner.num_computed == 32
    assert not any(row.sample for plan in driver.plans for row in plan.rows)


def test_more_sequences_share_the_prompt_and_copy_only_its_last_block(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = make_driver()
    name = driver.add(range(40), n=3)
    driver.step()
    plan = driver.step()
    assert len(plan.copies) == 2
    assert [row.start for row in plan.rows] == [40, 39, 39]
    shared = driver.plans[0].rows[0].new_blocks
    assert all(row.new_blocks[:2] == shared[:2] for row in plan.rows[1:])
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
    outputs = driver.scheduler.complete(plan, driver.runner.execute(plan))
    assert [output.request_id for output in outputs] == ["stays"]
    driver.scheduler.check_integrity()


def test_aborting_the_unknown_does_nothing(make_driver: Make) -> None:
    assert make_driver().scheduler.abort("nobody") == []


def test_prompt_logprobs_bypass_the_cache_but_fill_it(make_driver: Make) -> None:
    driver = make_driver()
    driver.add(range(40))
    driver.run()
    scored = driver.add(range(40), prompt_logprobs=1)
    driver.run()
    assert driver.last_of(scored).num_cached_tokens == 0
    assert driver.scheduler.kv.counters.bypassed == 40


def test_counters_tell_why_tokens_were_missed(make_driver: Make) -> None:
    driver = make_driver(num_blocks=5)
    counters = driver.scheduler.kv.counters
    driver.add(range(40), max_tokens=1)
    driver.run()
    assert (counters.absent, counters.below_block) == (32, 8)
    driver.add(range(40), max_tokens=1)
    driver.run()
    assert counters.hit == 32
    driver.add(range(100, 164), max_tokens=1)
    driver.run()
    driver.add(range(40), max_tokens=1)
    driver.run()
    assert counters.evicted == 32


def test_the_load_counts_what_is_waiting_and_not_cached(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=32, max_num_seqs=4)
    driver.add(range(64), max_tokens=1)
    driver.run()
    driver.add(range(100))
    assert driver.scheduler.load().waiting_prefill_tokens == 100 - 64
    driver.step()
    assert driver.scheduler.load().waiting_prefill_tokens == 4
    assert driver.scheduler.load().num_running == 1


def test_a_prompt_over_the_context_is_refused(make_driver: Make) -> None:
    driver = make_driver(max_model_len=32)
    with pytest.raises(ContextLengthExceeded, match="shorten the prompt to 31"):
        driver.add(range(32))
    driver.add(range(31))


def test_a_request_that_no_empty_pool_could_hold_is_refused(make_driver: Make) -> None:
    driver = make_driver(num_blocks=3)
    with pytest.raises(ContextLengthExceeded, match="the KV pool holds 32"):
        driver.add(range(20), max_tokens=14)
    driver.add(range(20), max_tokens=13)
    driver.run()


@pytest.mark.parametrize(
    "wishes",
    [
        {"tokens": []},
        {"tokens": [1000]},
        {"tokens": [-1]},
        {"tokens": [1], "digests": bytes(16)},
        {"tokens": [1], "digests": bytes(15)},
        {"tokens": [1], "n": 2, "generated": (b"",)},
        {"tokens": [1], "n": 2, "finished": (0, 1)},
        {"tokens": [1], "n": 2, "finished": (2,)},
    ],
)
def test_a_malformed_request_is_refused_and_leaves_nothing(make_driver: Make, wishes: Any) -> None:
    driver = make_driver()
    with pytest.raises(InvalidRequest):
        driver.add(**wishes)
    assert not driver.scheduler.has_work()
    driver.scheduler.check_integrity()


def test_a_second_request_under_one_id_is_refused(make_driver: Make) -> None:
    driver = make_driver()
    driver.add([1], "twin")
    with pytest.raises(InvalidRequest):
        driver.add([1], "twin")


def test_a_budget_below_the_number_of_rows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="max_num_batched_tokens"):
        SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=32)


def test_a_request_is_made_from_the_routers_message(make_driver: Make) -> None:
    tokens = pack_tokens(range(32))
    digests = b"".join(BlockHasher(SECRET, 16).digests(tokens))
    submit = Submit("a", tokens, SamplingParams(seed=1), digests, b"salt", (b"",), 3, 1.0, "adapter")
    request = Request.from_submit(submit)
    assert (request.request_id, request.prompt, request.digests) == ("a", tokens, digests)
    assert (request.isolation, request.generated, request.priority) == (b"salt", (b"",), 3)
    assert (request.adapter, request.live_indices) == ("adapter", [0])


def test_the_first_sequence_keeps_the_requests_seed_and_the_others_differ() -> None:
    seeds = [sequence_seed(seed, index) for seed in (0, 1, -1, 2**63 - 1) for index in range(128)]
    assert sequence_seed(-5, 0) == -5
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)
