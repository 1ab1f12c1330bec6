"""When a replica that has work counts as hanging. Time is told, and nothing waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from router.replicas.step_watch import FIRST_STEP_PATIENCE, SECOND_LOOK, SLOWEST_PATIENCE, StepWatch

TIMEOUT_S = 10.0
AGAIN_S = SECOND_LOOK * TIMEOUT_S
FIRST_S = FIRST_STEP_PATIENCE * TIMEOUT_S


@dataclass
class Timer:
    at_s: float
    call: Callable[[], None]
    armed: bool = True

    def cancel(self) -> None:
        self.armed = False


@dataclass
class Replica:
    """A watch, what it said, and its time."""

    now_s: float = 0.0
    prefill_s: float = 0.0
    hangs: list[float] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = StepWatch(
            TIMEOUT_S, lambda: self.prefill_s, self.hangs.append, lambda: self.now_s, self.call_later
        )

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now_s + delay_s, call))
        return self.timers[-1]

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self.timers if timer.armed]

    def pass_time(self, duration_s: float) -> None:
        end_s = self.now_s + duration_s
        while due := [timer for timer in self.armed if timer.at_s <= end_s]:
            due[0].armed = False
            self.now_s = due[0].at_s
            due[0].call()
        self.now_s = end_s


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def warm(replica: Replica) -> Replica:
    """Has work, and took a short step."""
    replica.watch.work()
    replica.watch.stepped()
    return replica


def test_without_work_no_timer_runs(replica: Replica) -> None:
    replica.watch.stepped()
    assert replica.armed == []


def test_work_arms_one_timer_and_its_end_none(warm: Replica) -> None:
    for _ in range(100):
        warm.watch.work()
        warm.watch.stepped()
    assert len(warm.armed) == 1 and len(warm.timers) == 2  # the first step's, and one
    warm.watch.rest()
    assert warm.armed == []


def test_no_step_for_the_set_time_is_a_hang_told_once(warm: Replica) -> None:
    warm.pass_time(TIMEOUT_S - 0.1)
    assert warm.hangs == []
    warm.pass_time(1000.0)
    assert warm.hangs == [TIMEOUT_S + AGAIN_S] and warm.watch.hung_s == TIMEOUT_S + AGAIN_S


def test_if_this_process_stood_still_there_is_time_to_read_the_steps(warm: Replica) -> None:
    warm.pass_time(TIMEOUT_S)
    warm.watch.stepped()
    warm.pass_time(AGAIN_S)
    assert warm.hangs == []


def test_the_first_step_may_take_longer(replica: Replica) -> None:
    replica.watch.work()
    replica.pass_time(FIRST_S - 0.1)
    assert replica.hangs == []
    replica.pass_time(100.0)
    assert replica.hangs == [FIRST_S + AGAIN_S]


def test_steps_in_time_are_none(warm: Replica) -> None:
    for _ in range(50):
        warm.pass_time(TIMEOUT_S / SLOWEST_PATIENCE - 0.1)
        warm.watch.stepped()
    assert warm.hangs == []


def test_the_next_step_ends_it(warm: Replica) -> None:
    warm.pass_time(1000.0)
    warm.watch.rest()
    assert warm.watch.stepped() and warm.watch.hung_s is None
    assert not warm.watch.stepped()


def test_time_without_work_does_not_count(warm: Replica) -> None:
    warm.watch.rest()
    warm.pass_time(1000.0)
    warm.watch.work()
    warm.pass_time(TIMEOUT_S - 0.1)
    assert warm.hangs == []
    warm.pass_time(100.0)
    assert warm.hangs == [TIMEOUT_S + AGAIN_S]


def test_long_steps_make_it_patient(warm: Replica) -> None:
    warm.pass_time(9.0)
    warm.watch.stepped()
    warm.pass_time(26.0)
    assert warm.hangs == []
    warm.pass_time(100.0)
    assert warm.hangs == [27.0 + AGAIN_S]


def test_so_does_prefill_that_waits_there(warm: Replica) -> None:
    warm.prefill_s = 100.0
    warm.pass_time(299.0)
    assert warm.hangs == []
    warm.pass_time(2.0)
    assert warm.hangs == [300.0 + AGAIN_S]


def test_a_hang_teaches_no_patience(warm: Replica) -> None:
    warm.pass_time(1000.0)
    warm.watch.rest()
    warm.watch.stepped()
    warm.hangs.clear()
    warm.watch.work()
    warm.pass_time(100.0)
    assert warm.hangs == [TIMEOUT_S + AGAIN_S]


def test_another_connection_gets_the_first_steps_patience_again(warm: Replica) -> None:
    warm.watch.restart()
    warm.watch.work()
    warm.pass_time(FIRST_S - 0.1)
    assert warm.hangs == []
