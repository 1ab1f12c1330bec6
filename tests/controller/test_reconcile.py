"""The controller's rules as tables: what there is, what is wanted, what is to be done."""

from __future__ import annotations

import pytest

from controller.reconcile import Action, Plan, Verb, failures_in_a_row, pause_s
from controller.reconcile import reconcile as reconcile_wanted
from controller.rollout import Observed, Wanted, WantedModel

NOW_S = 100.0
ROUTER = Observed("router-0", alive=True)
REPLICA = Observed("replica-0", alive=True, model="m")


def reconcile(wanted: list[str], observed: list[Observed], now_s: float, stopping: bool) -> Plan:
    routers = tuple(name for name in wanted if name.startswith("router"))
    models = (WantedModel("m", len(wanted) - len(routers)),)
    return reconcile_wanted(Wanted(models, routers), observed, now_s, stopping)


def actions(wanted: list[str], observed: list[Observed], stopping: bool = False) -> list[tuple[str, str]]:
    plan = reconcile(wanted, observed, NOW_S, stopping)
    return [(action.verb.value, action.unit) for action in plan.actions]


def test_what_is_wanted_and_missing_is_started() -> None:
    assert actions(["replica-0", "router-0"], []) == [("start", "replica-0"), ("start", "router-0")]


def test_what_is_wanted_and_alive_is_left_alone() -> None:
    assert actions(["replica-0", "router-0"], [REPLICA, ROUTER]) == []


def test_what_is_alive_and_not_wanted_is_drained_once() -> None:
    assert actions(["replica-0"], [REPLICA, Observed("replica-1", alive=True, model="m")]) == [
        ("drain", "replica-1")
    ]
    assert (
        actions(["replica-0"], [REPLICA, Observed("replica-1", alive=True, model="m", draining=True)]) == []
    )


def test_what_is_neither_is_forgotten() -> None:
    assert actions([], [Observed("replica-1", alive=False, model="m")]) == [("forget", "replica-1")]


def test_a_first_failure_is_started_again_at_once() -> None:
    assert actions(["replica-0"], [Observed("replica-0", False, "m", failures=1, failed_at_s=NOW_S)])


def test_a_second_failure_in_a_row_waits_and_says_until_when() -> None:
    failed = Observed("replica-0", False, "m", failures=3, failed_at_s=NOW_S - 1.5)
    plan = reconcile(["replica-0"], [failed], NOW_S, stopping=False)
    assert (plan.actions, plan.look_again_at_s) == ((), NOW_S + 0.5)


def test_its_pause_over_it_is_started() -> None:
    failed = Observed("replica-0", False, "m", failures=3, failed_at_s=NOW_S - 2.0)
    plan = reconcile(["replica-0"], [failed], NOW_S, stopping=False)
    assert (plan.actions, plan.look_again_at_s) == ((Action(Verb.START, "replica-0", "m"),), None)


def test_what_cannot_be_cured_is_not_started_again() -> None:
    hopeless = Observed("replica-0", False, "m", failures=1, failed_at_s=0.0, hopeless=True)
    assert reconcile(["replica-0"], [hopeless], NOW_S, stopping=False).actions == ()


def test_a_stop_drains_routers_before_the_replicas_behind_them() -> None:
    assert actions(["replica-0", "router-0"], [REPLICA, ROUTER], stopping=True) == [("drain", "router-0")]
    draining = Observed("router-0", alive=True, draining=True)
    assert actions(["replica-0", "router-0"], [REPLICA, draining], stopping=True) == []
    assert actions(["replica-0"], [REPLICA], stopping=True) == [("drain", "replica-0")]


def test_a_stop_starts_nothing() -> None:
    failed = Observed("replica-0", False, "m", failures=1)
    assert actions(["replica-0", "router-0"], [failed], stopping=True) == [("forget", "replica-0")]


@pytest.mark.parametrize(("failures", "pause"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (9, 60), (5000, 60)])
def test_pauses_double_up_to_a_minute(failures: int, pause: float) -> None:
    assert pause_s(failures) == pause


def test_a_unit_that_was_steady_has_not_failed_in_a_row() -> None:
    assert failures_in_a_row(4, ready_for_s=61.0) == 1
    assert failures_in_a_row(4, ready_for_s=5.0) == 5
    assert failures_in_a_row(4, ready_for_s=None) == 5
