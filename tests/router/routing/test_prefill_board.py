"""The books behind the routing columns: own dispatches, others' load, progress and speeds, against a small walk."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.speeds import UNMEASURED, Speeds
from router.routing.loads import ReplicaColumns, RoutingRequest
from router.routing.policy import choose
from router.routing.prefill_board import ASSUMED_SPEEDS, DEMAND_WINDOW_S, PrefillBoard

SPEEDS = Speeds(0.1, 0.001, 0.0, 0.05, 0.0)


@pytest.fixture
def board() -> PrefillBoard:
    board = PrefillBoard()
    for replica in "ab":
        board.add(replica)
        report(board, replica)
    return board


def report(
    board: PrefillBoard,
    replica: str = "a",
    waiting: int = 0,
    in_flight: int = 0,
    speeds: Speeds = SPEEDS,
    **more: Any,
) -> None:
    board.report(replica, waiting_prefill_tokens=waiting, num_in_flight=in_flight, speeds=speeds, **more)


def send(
    board: PrefillBoard, name: str, tokens: int, replica: str = "a", now_s: float = 0.0, **more: Any
) -> None:
    board.dispatched(replica, name, num_uncached=tokens, num_cached=0, now_s=now_s, **more)


def remaining(loads: ReplicaColumns, place: int = 0) -> list[float]:
    return [each.remaining_s for each in loads.unfinished[place]]


def test_a_dispatch_counts_at_once_with_the_replicas_own_speed(board: PrefillBoard) -> None:
    send(board, "one", 900, now_s=3.0, num_sequences=2)
    loads = board.columns(3.0)
    assert (loads.replicas, loads.num_in_flight) == (["a", "b"], [2, 0])
    assert remaining(loads) == [pytest.approx(1.0)] and remaining(loads, 1) == []
    assert board.waiting_prefill_tokens("a") == 900


def test_what_waits_for_its_prefill_takes_of_the_room_that_was_reported(board: PrefillBoard) -> None:
    report(board, free_tokens=1_000)
    send(board, "one", 900)
    assert board.columns(0.0).free_tokens == [100, 0]
    send(board, "two", 900)
    assert board.columns(0.0).free_tokens == [0, 0]
    board.prefilled("a", "one")
    assert board.columns(0.0).free_tokens == [100, 0]


def test_its_first_token_ends_the_prefill_and_its_end_the_rest(board: PrefillBoard) -> None:
    send(board, "one", 900)
    board.prefilled("a", "one")
    board.prefilled("a", "one")
    loads = board.columns(0.0)
    assert (remaining(loads), loads.num_in_flight[0], board.waiting_prefill_tokens("a")) == ([], 1, 0)
    board.ended("a", "one")
    assert board.columns(0.0).num_in_flight[0] == 0
    board.check_integrity()


def test_a_report_that_does_not_contain_a_dispatch_takes_nothing_from_it(board: PrefillBoard) -> None:
    send(board, "one", 900)
    for _ in range(3):
        report(board, waiting=0, in_flight=0, num_submits=0)
    assert board.waiting_prefill_tokens("a") == 900
    report(board, waiting=900, in_flight=1, num_submits=1)
    assert (board.waiting_prefill_tokens("a"), board.columns(0.0).num_in_flight[0]) == (900, 1)


def test_what_a_replica_has_beyond_our_dispatches_others_sent(board: PrefillBoard) -> None:
    send(board, "one", 900)
    report(board, waiting=2_900, in_flight=5)
    loads = board.columns(0.0)
    assert loads.others_prefill_s[0] == pytest.approx(2.0) and remaining(loads) == [pytest.approx(1.0)]
    assert (loads.num_in_flight[0], board.waiting_prefill_tokens("a")) == (5, 2_900)


def test_how_many_others_sent_is_what_waits_and_one_that_runs_less_our_own(board: PrefillBoard) -> None:
    send(board, "one", 900)
    report(board, waiting=2_900, num_waiting=3)
    assert board.columns(0.0).num_others == [3, 0]
    report(board, waiting=900, num_waiting=3)
    assert board.columns(0.0).num_others == [0, 0]
    report(board, waiting=901, num_waiting=0)
    assert board.columns(0.0).num_others == [1, 0]


def test_what_it_has_less_of_is_computed_already_of_the_first_in_its_order(board: PrefillBoard) -> None:
    send(board, "long", 8_000)
    send(board, "short", 900, now_s=0.5)
    report(board, waiting=7_000, in_flight=2)  # all of the short one, 1,000 of the long one
    assert remaining(board.columns(1.0)) == [pytest.approx(8.1 * 7 / 8), 0.0]
    assert board.waiting_prefill_tokens("a") == 7_000
    board.check_integrity()


def test_progress_is_counted_from_the_dispatch_and_not_twice(board: PrefillBoard) -> None:
    send(board, "one", 900)
    for _ in range(5):
        report(board, waiting=300, in_flight=1)
    assert board.waiting_prefill_tokens("a") == 300


def test_only_what_is_ready_stands_in_the_columns_when_not_all_are(board: PrefillBoard) -> None:
    send(board, "one", 900, replica="b")
    loads = board.columns(0.0, ["b"])
    assert (loads.replicas, loads.num_in_flight, len(remaining(loads))) == (["b"], [1], 1)


def test_a_replica_that_goes_takes_its_load_along_and_comes_back_with_none(board: PrefillBoard) -> None:
    send(board, "one", 900)
    board.remove("a")
    board.ended("a", "one")
    board.remove("a")
    assert board.columns(0.0).replicas == ["b"]
    board.add("a")
    assert (board.columns(0.0).replicas, board.waiting_prefill_tokens("a")) == (["b", "a"], 0)
    board.check_integrity()


def test_utilization_is_what_was_sent_a_second_and_replica_and_fades(board: PrefillBoard) -> None:
    for number in range(600):
        send(board, str(number), 900, now_s=float(number))
    assert board.columns(600.0).utilization == pytest.approx(0.5, rel=0.02)
    assert board.columns(660.0).utilization == pytest.approx(0.5 / math.e, rel=0.02)


def test_what_the_replicas_spend_on_others_requests_is_utilization_too(board: PrefillBoard) -> None:
    """Of three routers each sends a third."""
    for number in range(200):
        send(board, str(number), 900, now_s=3.0 * number)
    assert board.columns(600.0).utilization == pytest.approx(1 / 6, rel=0.03)
    for replica in "ab":
        speak(board, replica, 0.5, 600.0)
    assert board.columns(600.0).utilization == pytest.approx(0.5)
    assert board.columns(660.0).utilization == pytest.approx(0.5 / math.e)
    speak(board, "a", 0.2, 600.0)
    board.remove("b")
    assert board.columns(600.0).utilization == pytest.approx(
        1 / 3, rel=0.03
    )  # both thirds went to one of them


def speak(board: PrefillBoard, replica: str, utilization: float, now_s: float) -> None:
    board.report(
        replica,
        waiting_prefill_tokens=0,
        num_in_flight=0,
        speeds=SPEEDS,
        utilization=utilization,
        now_s=now_s,
    )


def test_the_backlog_is_the_mean_over_the_replicas_in_seconds(board: PrefillBoard) -> None:
    send(board, "one", 3_000)
    report(board, "b", waiting=1_000)
    assert board.columns(0.0).backlog_s == pytest.approx(2.0)


def test_a_replica_that_has_measured_nothing_counts_as_fast_as_the_others() -> None:
    board = PrefillBoard()
    board.add("a")
    assert board.columns(0.0).prefill_s_per_token == [ASSUMED_SPEEDS.prefill_s_per_token]
    report(board, "a")
    board.add("b")
    report(board, "b", speeds=UNMEASURED)
    assert board.columns(0.0).prefill_s_per_token == [0.001, 0.001]


def test_equal_machines_whose_measurements_differ_a_little_tie() -> None:
    board, rng = PrefillBoard(), random.Random(0)
    for number in range(8):
        board.add(f"r{number}")
        report(board, f"r{number}", speeds=Speeds(0.1, 0.001 * rng.uniform(0.9, 1.1), 0.0, 0.05, 0.0))
    loads = board.columns(0.0)
    chosen = {choose(RoutingRequest(1_000, [0] * 8), loads, rng).replica for _ in range(100)}
    assert chosen == set(loads.replicas)


def test_a_slower_machine_among_equal_ones_keeps_its_own_speed() -> None:
    board = PrefillBoard()
    for number, factor in enumerate([1.0, 1.1, 0.95, 3.0]):
        board.add(f"r{number}")
        report(board, f"r{number}", speeds=Speeds(0.0, 0.001 * factor, 0.0, 0.05, 0.0))
    assert board.columns(0.0).prefill_s_per_token == [0.001, 0.001, 0.001, 0.003]


def test_a_replica_that_becomes_much_slower_is_known_to_be_at_once(board: PrefillBoard) -> None:
    report(board, "b", speeds=Speeds(0.1, 0.003, 0.0, 0.05, 0.0))
    assert board.columns(0.0).prefill_s_per_token == [0.001, 0.003]


def test_a_replica_that_becomes_a_little_slower_and_then_a_little_more_is_known_after_a_round_of_reports(
    board: PrefillBoard,
) -> None:
    for per_token in (0.0011, 0.0012, 0.0013, 0.0014):
        for replica in "ab":
            report(board, replica, speeds=Speeds(0.0, per_token if replica == "b" else 0.001, 0.0, 0.05, 0.0))
    assert board.columns(0.0).prefill_s_per_token == [0.001, 0.0014]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_speed_that_is_no_speed_is_not_taken_over(board: PrefillBoard, bad: float) -> None:
    report(board, speeds=Speeds(0.1, bad, 0.0, 0.05, 0.0))
    assert board.columns(0.0).prefill_s_per_token == [0.001, 0.001]


def test_a_replica_that_has_become_three_times_slower_gets_a_third_of_the_tokens(board: PrefillBoard) -> None:
    report(board, "b", speeds=Speeds(0.1, 0.003, 0.0, 0.05, 0.0))
    sent, rng = {"a": 0, "b": 0}, random.Random(0)
    for number in range(80):
        decision = choose(RoutingRequest(1_000, [0, 0]), board.columns(0.0), rng)
        send(board, str(number), 1_000, decision.replica)
        sent[decision.replica] += 1
    assert sent["b"] == pytest.approx(20, abs=3)


operations = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "prefilled", "ended", "report", "remove"]),
        st.sampled_from("abc"),
        st.integers(0, 5_000),
    ),
    max_size=60,
)


@given(operations)
def test_a_walk_keeps_the_books_and_leaves_nothing_behind(walk: list[tuple[str, str, int]]) -> None:
    board, live = PrefillBoard(), dict[str, str]()
    for name in "abc":
        board.add(name)
    for step, (operation, replica, number) in enumerate(walk):
        names = [name for name, place in live.items() if place == replica]
        if operation == "send":
            live[str(step)] = replica
            send(board, str(step), number, replica, float(step))
        elif operation == "report":
            report(board, replica, number, number % 50, free_tokens=2 * number)
        elif operation == "remove":
            board.remove(replica)
            board.add(replica)
            live = {name: place for name, place in live.items() if place != replica}
        elif names and operation == "prefilled":
            board.prefilled(replica, names[number % len(names)])
        elif names:
            board.ended(replica, names[number % len(names)])
            del live[names[number % len(names)]]
        board.check_integrity()
    for name, replica in live.items():
        board.ended(replica, name)
    for replica in "abc":
        report(board, replica)
        assert board.waiting_prefill_tokens(replica) == 0
    assert set(board.columns(0.0).num_in_flight) == {0}


def test_what_is_sent_and_what_is_spent_are_told_apart() -> None:
    board = PrefillBoard()
    board.add("a")
    board.report("a", waiting_prefill_tokens=0, num_in_flight=0, speeds=Speeds(0.0, 0.01, 0.0), now_s=0.0)
    board.dispatched("a", "r", num_uncached=600, num_cached=0, now_s=0.0)
    spent, sent = board.prefill_rates(0.0)
    assert spent == 0.0 and sent == pytest.approx(600 * 0.01 / DEMAND_WINDOW_S)
    board.report(
        "a",
        waiting_prefill_tokens=0,
        num_in_flight=1,
        speeds=Speeds(0.0, 0.01, 0.0),
        utilization=0.5,
        now_s=0.0,
    )
    assert board.prefill_rates(0.0)[0] == pytest.approx(0.5)
