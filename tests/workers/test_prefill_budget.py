"""How a step's budget is shared: long prompts and short ones, prefill and decodes, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workers.scheduling.admission_orders import FirstComeFirstServed, ResponseRatio

Make = Callable[..., Any]
ROOM = {"num_blocks": 2000, "max_model_len": 4000}
BUDGET = {"max_num_batched_tokens": 32, "max_num_seqs": 8}


def timed(driver: Any) -> Any:
    """Each step takes a tenth of a second, as 32 tokens of prefill do."""
    driver.step_s = 0.1
    driver.scheduler.prefill_s_per_token = 0.1 / 32
    return driver


def prompt(number: int, length: int) -> range:
    """Different prompts share nothing."""
    return range(37 * number % 600, 37 * number % 600 + length)


def delays(driver: Any, steps: int, submit: Callable[[int], str | None]) -> dict[str, int]:
    """By request: steps from its arrival to its first token. `submit` may add one before each step."""
    arrived: dict[str, int] = {}
    first: dict[str, int] = {}
    for step in range(steps):
        if name := submit(step):
            arrived[name] = step
        driver.step()
        for output in driver.outputs:
            first.setdefault(output.request_id, step)
    return {name: first[name] - arrived[name] for name in arrived if name in first}


def test_a_long_prefill_never_holds_up_a_stream_of_short_ones_and_still_ends(make_driver: Make) -> None:
    driver = timed(make_driver(**ROOM, **BUDGET, enable_prefix_caching=False))

    def submit(step: int) -> str:
        return driver.add(prompt(step, 24) if step else range(600), f"{step}", max_tokens=1)

    found = delays(driver, 120, submit)
    assert 50 < found.pop("0") < 71  # by what the short ones leave it alone it would take 71 steps
    assert max(found.values()) <= 5
    assert sum(found.values()) < len(found)


def test_no_number_of_begun_prefills_holds_up_a_short_one(make_driver: Make) -> None:
    driver = timed(make_driver(**ROOM, **BUDGET))
    driver.add(range(900), "long")
    driver.step()
    driver.add(range(100, 700), "less long")
    driver.step()
    assert driver.scheduler.load().num_running == 2
    driver.add(range(300, 330), "short")
    driver.step()
    assert driver.outputs[0].request_id == "short"


def test_no_third_long_prefill_begins_beside_two(make_driver: Make) -> None:
    driver = timed(make_driver(**ROOM, **BUDGET))
    for number, length in enumerate((900, 600, 300)):
        driver.add(range(number, length), f"of {length}")
        driver.step()
    assert driver.scheduler.load().num_running == 2
    driver.run()
    ends = [output.request_id for output in driver.outputs if output.finish_reason]
    assert ends == ["of 600", "of 300", "of 900"]


def test_a_long_prefill_ends_even_when_short_ones_want_the_whole_budget(make_driver: Make) -> None:
    driver = timed(make_driver(**ROOM, **BUDGET, enable_prefix_caching=False))

    def submit(step: int) -> str:
        return driver.add(prompt(step, 32) if step else range(320), f"{step}", max_tokens=1)

    found = delays(driver, 300, submit)
    assert found.pop("0") < 150
    assert max(found.values()) < 40


def mean_delay_of_short_ones(driver: Any) -> float:
    def submit(step: int) -> str | None:
        if step % 40 == 0:
            driver.add(range(640), max_tokens=1)
        return driver.add(prompt(step, 16), max_tokens=1) if step % 4 == 2 else None

    found = delays(driver, 400, submit)
    assert len(found) > 90
    return sum(found.values()) / len(found)


def test_response_ratio_starts_short_ones_in_the_midst_of_long_ones(make_driver: Make) -> None:
    means = []
    for order in (FirstComeFirstServed(), ResponseRatio()):
        driver = timed(make_driver(**ROOM, **BUDGET, order=order, enable_prefix_caching=False))
        means.append(mean_delay_of_short_ones(driver))
    assert means[0] > 5.0
    assert means[1] < 0.5


def test_each_decode_gets_a_token_a_step_whatever_there_is_to_prefill(make_driver: Make) -> None:
    driver = timed(make_driver(**ROOM, **BUDGET))
    names = [driver.add(prompt(number, 8), max_tokens=40) for number in range(4)]
    driver.step()
    for number in range(5, 15):
        driver.add(range(number, 600), max_tokens=1)
    for step in range(1, 40):
        driver.step()
        assert [len(driver.tokens_of(name)) for name in names] == [step + 1] * 4


@pytest.mark.parametrize("budget", [8, 20])
def test_decodes_leave_prefill_what_the_configuration_says(make_driver: Make, budget: int) -> None:
    driver = timed(make_driver(**ROOM, max_num_seqs=8, max_num_batched_tokens=budget))
    for number in range(7):
        driver.add(prompt(number, 4), max_tokens=200)
    while driver.scheduler.load().waiting_prefill_tokens:
        driver.step()
    driver.add(range(400))
    least = budget - 7
    for _ in range(10):
        before = driver.scheduler.load().waiting_prefill_tokens
        driver.step()
        assert before - driver.scheduler.load().waiting_prefill_tokens == least


def test_whoever_waits_for_the_blocks_of_a_begun_prefill_gets_them_in_the_default_order(
    make_driver: Make, expected_tokens: Make
) -> None:
    driver = timed(make_driver(**ROOM, **BUDGET))
    first = driver.add(range(160))
    driver.step()
    second = driver.add(range(160))
    driver.run()
    assert driver.runner.num_computed == 160 + 16 + 2 * 3
    assert driver.last_of(second).num_cached_tokens == 144
    assert driver.tokens_of(first) == driver.tokens_of(second) == expected_tokens(range(160), 4)


def test_the_load_tells_what_became_cached_while_a_request_waited(make_driver: Make) -> None:
    driver = timed(make_driver(**ROOM, max_num_seqs=1, max_num_batched_tokens=512))
    driver.add(range(320), max_tokens=30)
    driver.add(range(320))
    assert driver.scheduler.load().waiting_prefill_tokens == 640
    for _ in range(10):
        driver.step()
    assert driver.scheduler.load().waiting_prefill_tokens == 16
