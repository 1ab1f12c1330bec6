"""When a sequence ends, and how a moved one goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.messages import FinishReason
from protocol.tokens import pack_tokens

Make = Callable[..., Any]


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
    assert not any(plan.num_drawn for plan in driver.plans)
