"""A request that comes from another replica, or waited at its router, keeps its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]


def test_who_waited_elsewhere_goes_before_a_shorter_newcomer(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=64, max_num_seqs=1)
    driver.add(range(100, 164), "moved", max_tokens=1, waited_s=60.0)
    driver.add(range(20), "newcomer", max_tokens=1)
    driver.step()
    assert driver.last_of("moved").finish_reason is not None


def test_without_that_the_shorter_one_goes_first(make_driver: Make) -> None:
    driver = make_driver(max_num_batched_tokens=64, max_num_seqs=1)
    driver.add(range(100, 164), "equally new", max_tokens=1)
    driver.add(range(20), "newcomer", max_tokens=1)
    driver.step()
    assert driver.last_of("newcomer").finish_reason is not None
