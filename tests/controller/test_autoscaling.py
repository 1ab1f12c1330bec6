"""How many replicas a demand calls for: single decisions, and walks along load curves over a fleet that answers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from controller.autoscaling import Autoscaler, Need, need_of
from controller.config_file import build_config
from controller.model_config import Autoscaling
from protocol.demand import RouterDemand
from protocol.errors import InvalidRequest
from protocol.messages import Load
from protocol.speeds import Speeds

SETTINGS = Autoscaling(min_replicas=1, max_replicas=10, up_after_s=10.0, down_after_s=100.0)
STEP_S = 2.0


def walk(
    curve: Callable[[float], float], until_s: float, settings: Autoscaling = SETTINGS, start: int = 1
) -> list[tuple[float, int]]:
    """The changes while the offered load, in replicas' worth, follows the curve.

    The fleet answers back: what it has no time for waits, a fuller replica batches better (a tenth), and a replica
    that is started is there 30 s later. What it spends is told as a minute's average, what it is sent as one of 15 s.
    """
    scaler, ready, wanted, backlog_s = Autoscaler(settings, 0.0), start, start, 0.0
    sent = spent = curve(0.0)
    coming: list[tuple[float, int]] = []
    changes, now_s = [], 0.0
    while now_s < until_s:
        now_s += STEP_S
        ready = max([ready, *(number for at_s, number in coming if at_s <= now_s)])
        offered = curve(now_s) * (1.05 - 0.1 * min(1.0, curve(now_s) / max(1, ready)))
        backlog_s = max(0.0, backlog_s + (offered - ready) * STEP_S)
        sent += (offered - sent) * (1.0 - math.exp(-STEP_S / 15.0))
        spent += (min(float(ready), offered) - spent) * (1.0 - math.exp(-STEP_S / 60.0))
        need = Need(max(spent, sent) + backlog_s / 30.0)
        decided = scaler.decide(wanted, need, now_s)
        if decided != wanted:
            changes.append((now_s, decided))
            coming.append((now_s + 30.0, decided))
            ready = min(ready, decided)
            wanted = decided
    return changes


@pytest.mark.parametrize("load", [0.0, 0.3, 0.69, 0.7, 0.71, 1.4, 2.1, 3.3, 6.9])
def test_a_constant_load_is_answered_once_and_for_all(load: float) -> None:
    start = max(1, math.ceil(load / 0.7))
    assert len(walk(lambda now_s: load, 3600.0, start=start)) <= 1


def test_noise_around_a_constant_load_does_not_flap() -> None:
    rng = random.Random(0)
    changes = walk(lambda now_s: 3.0 * (1.0 + 0.15 * rng.uniform(-1.0, 1.0)), 7200.0, start=5)
    assert len(changes) <= 1


def test_a_jump_is_answered_after_the_short_window_and_enough() -> None:
    changes = walk(lambda now_s: 0.5 if now_s < 100 else 4.0, 600.0)
    assert 110.0 <= changes[0][0] <= 114.0
    assert 6 <= changes[-1][1] <= 8 and max(number for _, number in changes) <= 10
    assert next(at_s for at_s, number in changes if number >= 6) <= 200.0


def test_a_short_spike_starts_nothing() -> None:
    assert walk(lambda now_s: 1.5 if 100 <= now_s < 104 else 0.4, 600.0) == []


def test_what_is_no_longer_needed_goes_only_after_the_long_window() -> None:
    changes = walk(lambda now_s: 4.0 if now_s < 300 else 0.5, 900.0, start=6)
    assert changes[0][0] >= 400.0 and changes[-1][1] == 1


def test_a_dip_shorter_than_the_long_window_ends_nothing() -> None:
    assert walk(lambda now_s: 0.5 if 300 <= now_s < 390 else 4.0, 900.0, start=6) == []


def test_a_day_of_load_changes_little_and_follows() -> None:
    changes = walk(lambda now_s: 3.0 + 2.5 * math.sin(now_s / 86400.0 * 2 * math.pi), 86400.0, start=5)
    numbers = [number for _, number in changes]
    assert max(numbers) >= 8 and min(numbers) <= 2 and len(numbers) <= 20


def test_bounds_are_kept() -> None:
    settings = SETTINGS.model_copy(update={"min_replicas": 2, "max_replicas": 3})
    assert {number for _, number in walk(lambda now_s: 9.0, 600.0, settings, start=2)} == {3}
    assert {number for _, number in walk(lambda now_s: 0.0, 600.0, settings, start=3)} == {2}


def test_bounds_that_the_present_number_breaks_are_kept_at_once() -> None:
    assert Autoscaler(SETTINGS, 0.0).decide(0, Need(0.0), 1.0) == 1
    assert Autoscaler(SETTINGS, 0.0).decide(12, Need(9.0), 1.0) == 10


def test_a_new_controller_watches_a_whole_window_before_it_ends_anything() -> None:
    scaler = Autoscaler(SETTINGS, 1000.0)
    assert scaler.decide(5, Need(0.1), 1002.0) == 5
    assert scaler.decide(5, Need(0.1), 1100.0) == 1


TO_ZERO = SETTINGS.model_copy(update={"min_replicas": 0})


def test_nothing_to_do_at_all_scales_to_zero_after_the_long_window() -> None:
    changes = walk(lambda now_s: 0.5 if now_s < 50 else 0.0, 600.0, TO_ZERO)
    assert changes[-1][1] == 0 and changes[-1][0] > 150.0


def test_averages_of_what_has_ended_keep_nothing_beyond_the_long_window() -> None:
    scaler = Autoscaler(TO_ZERO, 0.0)
    decided = [scaler.decide(3, Need(2.0, num_requests=9, is_idle=at > 50), float(at)) for at in range(200)]
    assert decided.index(0) == 151


def test_averages_of_what_has_ended_start_nothing_again() -> None:
    scaler = Autoscaler(TO_ZERO, 0.0)
    ended = Need(0.5, num_requests=9, is_idle=True)
    assert {scaler.decide(0, ended, float(at)) for at in range(100, 300)} == {0}


def test_moments_without_work_are_no_reason_to_wait_with_more() -> None:
    """Short requests at a high rate: every other look finds nothing running."""
    scaler = Autoscaler(TO_ZERO, 0.0)
    needs = [Need(2.0, num_requests=at, is_idle=at % 2 == 0) for at in range(12)]
    assert [scaler.decide(1, need, float(at)) for at, need in enumerate(needs)][-1] == 3


def test_what_runs_on_keeps_one() -> None:
    scaler = Autoscaler(TO_ZERO, 0.0)
    assert {scaler.decide(1, Need(0.02, num_requests=9), float(at)) for at in range(300)} == {1}


def test_a_request_now_and_then_keeps_one() -> None:
    scaler = Autoscaler(TO_ZERO, 0.0)
    assert [scaler.decide(1, Need(0.001, num_requests=at // 50), at) for at in range(1, 500)] == [1] * 499
    assert scaler.decide(1, Need(0.0, num_requests=9), 700.0) == 0


def test_a_request_that_waits_for_a_replica_brings_one_at_once() -> None:
    assert Autoscaler(TO_ZERO, 0.0).decide(0, Need(0.0, is_waited_for=True), 0.1) == 1


LOAD = Load(12, 4, 100, 30, 5, 3000, speeds=Speeds(0.0, 0.001, 0.0))


def test_the_scarcest_of_prefill_rows_and_blocks_counts() -> None:
    demand = RouterDemand((("a", LOAD), ("b", LOAD)), prefill_spent=0.5)
    assert need_of([demand], max_num_seqs=32).replicas == pytest.approx(2 * 16 / 32)  # rows
    assert need_of([demand], max_num_seqs=64).replicas == pytest.approx(2 * (0.25 + 3.0 / 30))  # prefill
    full = RouterDemand((("a", Load(1, 0, 100, 90, 0, 0)),))
    assert need_of([full], max_num_seqs=64).replicas == pytest.approx(0.9)  # blocks


@pytest.mark.parametrize(
    ("load", "num_waiting", "idle"),
    [
        (Load(0, 0, 100, 0, 80, 0), 0, True),
        (Load(1, 0, 100, 1, 80, 0), 0, False),
        (Load(0, 1, 100, 0, 80, 0), 0, False),
        (Load(0, 0, 100, 0, 80, 0), 1, False),
    ],
)
def test_it_is_idle_when_nothing_runs_or_waits(load: Load, num_waiting: int, idle: bool) -> None:
    demand = RouterDemand((("a", load),), prefill_spent=0.5, num_waiting=num_waiting)
    assert need_of([demand], max_num_seqs=64).is_idle is idle


def test_what_is_sent_counts_where_replicas_cannot_keep_up() -> None:
    saturated = RouterDemand((("a", Load(1, 0, 100, 1, 0, 0)),), prefill_spent=1.0, prefill_sent=1.5)
    assert need_of([saturated, saturated], max_num_seqs=64).replicas == 3.0


def test_a_replica_that_several_routers_see_counts_once() -> None:
    one = RouterDemand((("a", LOAD),), prefill_spent=0.25)
    assert need_of([one, one], 32) == need_of([one], 32)
    assert need_of([one, RouterDemand((), num_waiting=1)], 32).is_waited_for


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="above max_replicas"):
        build_config({"autoscaling": {"min_replicas": 3, "max_replicas": 2}})
