"""The routing rule: what wins, why it is said to, and what must hold whatever the loads are."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.requests.routed_request import Decision, Reason
from router.routing.costs import cost_table, price_of_a_copy
from router.routing.loads import ReplicaColumns, RoutingRequest, UnfinishedPrefill
from router.routing.policy import choose
from router.routing.prefill_board import ASSUMED_SPEEDS, PrefillBoard


@dataclass(frozen=True)
class Replica:
    """One row of the columns. At the second 100; `unfinished`: (seconds, dispatched at)."""

    name: str
    matched: int = 0
    unfinished: tuple[tuple[float, float], ...] = ()
    others_s: float = 0.0
    num_others: int = 0
    in_flight: int = 0
    free: int = 1_000_000
    speeds: tuple[float, float, float, float] = field(
        default=(
            ASSUMED_SPEEDS.prefill_s,
            ASSUMED_SPEEDS.prefill_s_per_token,
            ASSUMED_SPEEDS.prefill_s_per_pair,
            ASSUMED_SPEEDS.decode_s,
        )
    )


def columns(*replicas: Replica, utilization: float = 0.0, backlog_s: float = 0.0) -> ReplicaColumns:
    return ReplicaColumns(
        [each.name for each in replicas],
        *([each.speeds[part] for each in replicas] for part in range(4)),
        unfinished=[[UnfinishedPrefill(*pair) for pair in each.unfinished] for each in replicas],
        others_prefill_s=[each.others_s for each in replicas],
        num_others=[each.num_others for each in replicas],
        free_tokens=[each.free for each in replicas],
        num_in_flight=[each.in_flight for each in replicas],
        utilization=utilization,
        backlog_s=backlog_s,
        now_s=100.0,
    )


def decide(
    *replicas: Replica,
    tokens: int = 16_000,
    seed: int = 0,
    affinity: str | None = None,
    utilization: float = 0.0,
    backlog_s: float = 0.0,
) -> Decision:
    request = RoutingRequest(tokens, [each.matched for each in replicas], affinity)
    loads = columns(*replicas, utilization=utilization, backlog_s=backlog_s)
    return choose(request, loads, random.Random(seed))


def test_the_only_candidate_is_chosen_however_loaded() -> None:
    decision = decide(Replica("a", others_s=1e9, unfinished=((1e6, 0.0),)))
    assert (decision.replica, decision.reason) == ("a", Reason.ONLY)


def test_the_longest_match_wins_over_a_little_less_load() -> None:
    decision = decide(Replica("a", 15_000, in_flight=9), Replica("b", 8_000), Replica("c"))
    assert (decision.replica, decision.matched_tokens, decision.reason) == ("a", 15_000, Reason.PREFIX)


def test_a_short_match_on_a_busy_replica_does_not_hold_the_request_there() -> None:
    decision = decide(Replica("a", 1_000, others_s=5.0), Replica("b"))
    assert (decision.replica, decision.reason, decision.best_matched_tokens) == ("b", Reason.BALANCED, 1_000)


def test_a_cold_prompt_goes_to_the_shortest_wait() -> None:
    decision = decide(Replica("a", unfinished=((0.5, 100.0),)), Replica("b", in_flight=3))
    assert (decision.replica, decision.reason) == ("b", Reason.COLD)


def test_a_second_copy_is_dearer_the_busier_the_fleet_is() -> None:
    replicas = (Replica("holder", 15_000, others_s=3.0), Replica("idle"))
    assert decide(*replicas).replica == "idle"
    assert decide(*replicas, utilization=0.9).replica == "holder"
    assert decide(*replicas, backlog_s=9.0).replica == "holder"


@pytest.mark.parametrize(
    ("utilization", "backlog_s", "price"),
    [(0.0, 0.0, 1.0), (0.5, 3.0, 5.0), (0.999, 0.0, 30.0), (9.0, 0.0, 30.0)],
)
def test_the_price_of_a_copy_grows_with_the_load_up_to_its_bound(
    utilization: float, backlog_s: float, price: float
) -> None:
    loads = columns(Replica("a"), utilization=utilization, backlog_s=backlog_s)
    assert price_of_a_copy(loads) == pytest.approx(price)


def test_a_short_prompt_minds_a_long_one_less_than_short_ones_of_half_its_seconds() -> None:
    """It overtakes the one and waits for the others."""
    long = Replica("long", unfinished=((8.0, 100.0),))
    short = Replica("short", unfinished=((0.02, 100.0),) * 100)
    assert decide(long, short, tokens=900).replica == "long"


def test_a_long_prefill_that_has_waited_is_not_overtaken_any_more() -> None:
    request, loads = (
        RoutingRequest(900, [0, 0]),
        columns(Replica("young", unfinished=((0.5, 99.0),)), Replica("old", unfinished=((0.5, 90.0),))),
    )
    young, old = cost_table(request, loads)
    assert (young.num_overtaken, young.ahead_s) == (1, 0.0)
    assert (old.num_overtaken, old.ahead_s) == (0, 0.5)


@pytest.mark.parametrize(("num_others", "ahead_s", "num_overtaken"), [(0, 8.0, 0), (2, 0.0, 2), (50, 8.0, 0)])
def test_what_other_routers_sent_counts_as_so_many_average_prefills(
    num_others: int, ahead_s: float, num_overtaken: int
) -> None:
    """Two of 4 s are overtaken by one of 0.5 s, fifty of 0.16 s are not."""
    others = Replica("a", others_s=8.0, num_others=num_others)
    (terms,) = cost_table(RoutingRequest(7_700, [0]), columns(others))
    assert (terms.ahead_s, terms.num_overtaken) == (ahead_s, num_overtaken)
    assert decide(others, tokens=7_700).cost == pytest.approx(terms.cost_s)


@pytest.mark.parametrize(("priority", "ahead_s", "num_overtaken"), [(0, 0.0, 2), (1, 0.2, 1), (2, 9.2, 0)])
def test_a_better_class_is_ahead_and_a_worse_one_overtaken_whatever_they_take(
    priority: int, ahead_s: float, num_overtaken: int
) -> None:
    loads = columns(Replica("a"))
    tiny, huge = UnfinishedPrefill(0.2, 100.0, priority=1), UnfinishedPrefill(9.0, 100.0, priority=1)
    loads = replace(loads, unfinished=[[tiny, huge]])
    (terms,) = cost_table(RoutingRequest(7_700, [0], priority=priority), loads)
    assert (terms.ahead_s, terms.num_overtaken) == (pytest.approx(ahead_s), num_overtaken)


def test_a_slower_replica_counts_as_slower() -> None:
    slow = Replica("slow", speeds=(0.015, 3 / 16_000, 0.0, 0.02))
    assert decide(slow, Replica("fast", unfinished=((0.5, 0.0),))).replica == "fast"
    assert decide(slow, Replica("fast", unfinished=((5.0, 0.0),))).replica == "slow"


def test_a_slower_replica_does_not_pay_the_price_of_a_copy_for_being_slow() -> None:
    slow, fast = Replica("slow", speeds=(0.0, 0.001, 0.0, 0.0)), Replica("fast", others_s=16.0)
    assert decide(slow, fast, utilization=0.999).replica == "slow"


def test_a_full_replica_pays_for_half_of_what_it_would_push_out() -> None:
    request = RoutingRequest(16_000, [8_000] * 3)
    loads = columns(*(Replica("a", 8_000, free=free) for free in (8_000, 6_400, 0)))
    assert [each.evict_s for each in cost_table(request, loads)] == [0.0, pytest.approx(0.05), 0.25]


def test_a_shared_head_does_not_hold_a_prompt_where_room_is_scarce() -> None:
    holder, empty = Replica("holder", 1_000, free=0), Replica("empty")
    assert decide(holder, empty).replica == "empty"
    assert decide(replace(holder, free=15_000), empty).replica == "holder"


def test_the_cost_is_the_sum_of_its_terms() -> None:
    replicas = (
        Replica("a", 8_000, ((0.1, 99.0), (9.0, 99.5)), others_s=0.3, in_flight=4, free=4_800),
        Replica("b", unfinished=((0.2, 90.0),)),
    )
    table = cost_table(RoutingRequest(16_000, [8_000, 0]), columns(*replicas, utilization=0.5, backlog_s=1.0))
    decision = decide(*replicas, utilization=0.5, backlog_s=1.0)
    own = 0.015 + 0.5 + ASSUMED_SPEEDS.prefill_s_per_pair * 8_000 * 12_000
    assert table[0].prefill_s == pytest.approx(own)
    assert table[0].ahead_s == pytest.approx(0.4) and table[0].num_overtaken == 1
    assert table[1].copy_s == pytest.approx(3.0 * (table[1].prefill_s - own))
    assert table[0].cost_s == pytest.approx(0.4 + 3 * own + 0.1 + 0.08)
    assert decision.cost == pytest.approx(min(each.cost_s for each in table))


def test_ties_are_broken_at_random_over_all_replicas() -> None:
    replicas = [Replica(name) for name in "abcd"]
    assert {decide(*replicas, seed=seed).replica for seed in range(64)} == set("abcd")


def test_affinity_breaks_ties_always_alike_and_spreads_sessions() -> None:
    replicas = [Replica(name) for name in "abcd"]
    chosen = [decide(*replicas, seed=seed, affinity="s") for seed in range(16)]
    assert len({each.replica for each in chosen}) == 1 and chosen[0].reason is Reason.AFFINITY
    assert {decide(*replicas, affinity=f"session {n}").replica for n in range(64)} == set("abcd")


def test_affinity_breaks_ties_and_nothing_else() -> None:
    busy, idle = Replica("a", in_flight=1), Replica("b")
    assert {decide(busy, idle, affinity=f"session {n}").replica for n in range(16)} == {"b"}
    assert decide(busy, idle, affinity="s").reason is Reason.COLD


def test_a_sessions_place_does_not_depend_on_the_other_replicas() -> None:
    replicas = [Replica(name) for name in "abcdefgh"]
    for n in range(32):
        place = decide(*replicas, affinity=f"session {n}").replica
        fewer = [each for each in replicas if each.name in (place, "a", "b")]
        if len(fewer) > 1:
            assert decide(*fewer, affinity=f"session {n}").replica == place


def test_an_empty_prompt_gets_an_answer() -> None:
    assert decide(Replica("a"), Replica("b"), tokens=0).reason is Reason.COLD


BAD = [0.0, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("part", range(4))
def test_a_speed_that_is_no_speed_does_not_stop_routing(part: int, bad: float) -> None:
    speeds = list(Replica("a").speeds)
    speeds[part] = bad
    replicas = (Replica("a", 8_000, in_flight=1, speeds=tuple(speeds)), Replica("b", in_flight=1))  # type: ignore[arg-type]
    decision = decide(*replicas)
    assert decision.replica == "a"
    assert (decision.reason is Reason.FALLBACK) == (not math.isfinite(bad))


def test_without_costs_a_large_match_wins_over_a_little_load_and_loses_to_much() -> None:
    nowhere = (math.nan,) * 4
    holder = Replica("holder", 16_000, in_flight=11, speeds=nowhere)
    idle = Replica("idle", in_flight=10, speeds=nowhere)
    assert decide(holder, idle).replica == "holder"
    assert decide(replace(holder, in_flight=99), idle).replica == "idle"


def test_unfinished_prefills_of_no_length_do_not_stop_routing() -> None:
    assert decide(Replica("a", unfinished=((math.nan, 0.0),)), Replica("b", unfinished=((math.nan, 0.0),)))


def test_no_replica_starves_in_a_run_of_cold_requests() -> None:
    """Nothing ends meanwhile, and they differ in size: each replica gets its share of the seconds."""
    board, rng = PrefillBoard(), random.Random(5)
    sent = dict.fromkeys("abcd", 0)
    for name in sent:
        board.add(name)
    for number in range(200):
        tokens = rng.choice([100, 1_000, 8_000, 30_000])
        loads = board.columns(number / 50)
        decision = choose(RoutingRequest(tokens, [0] * 4), loads, rng)
        sent[decision.replica] += tokens
        board.dispatched(decision.replica, str(number), num_uncached=tokens, num_cached=0, now_s=number / 50)
    assert max(sent.values()) < 1.5 * min(sent.values())


seconds = st.floats(0.001, 50.0)
replica_lists = st.lists(
    st.builds(
        Replica,
        name=st.uuids().map(str),
        matched=st.integers(0, 20_000),
        unfinished=st.lists(st.tuples(seconds, st.floats(0.0, 100.0)), max_size=6).map(tuple),
        others_s=seconds,  # so that no two tie but by a chance that does not happen
        in_flight=st.integers(0, 100),
        num_others=st.integers(0, 9),
        free=st.integers(0, 30_000),
        speeds=st.tuples(
            st.floats(0.0, 0.1), st.floats(1e-6, 1e-2), st.floats(0.0, 1e-7), st.floats(0.0, 0.2)
        ),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each.name,
)
loads_of_the_fleet = st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 40.0))


def cost_of(name: str, replicas: list[Replica], fleet: tuple[float, float]) -> float:
    request = RoutingRequest(20_000, [each.matched for each in replicas])
    table = cost_table(request, columns(*replicas, utilization=fleet[0], backlog_s=fleet[1]))
    return next(each.cost_s for each in table if each.replica == name)


@given(replica_lists, loads_of_the_fleet)
def test_no_other_replica_would_have_cost_less(replicas: list[Replica], fleet: tuple[float, float]) -> None:
    decision = decide(*replicas, tokens=20_000, utilization=fleet[0], backlog_s=fleet[1])
    least = min(cost_of(each.name, replicas, fleet) for each in replicas)
    assert cost_of(decision.replica, replicas, fleet) == pytest.approx(least)


@given(replica_lists, loads_of_the_fleet, st.randoms(use_true_random=False))
def test_the_order_of_the_replicas_changes_no_cost_and_no_reason(
    replicas: list[Replica], fleet: tuple[float, float], order: random.Random
) -> None:
    shuffled = list(replicas)
    order.shuffle(shuffled)
    one = decide(*replicas, tokens=20_000, utilization=fleet[0], backlog_s=fleet[1])
    other = decide(*shuffled, tokens=20_000, utilization=fleet[0], backlog_s=fleet[1])
    assert one.cost == other.cost
    costs = [cost_of(each.name, replicas, fleet) for each in replicas]
    if costs.count(min(costs)) == 1:
        assert one == other


@given(replica_lists, loads_of_the_fleet, st.integers(1, 20_000))
def test_more_cached_tokens_never_make_a_replica_less_attractive(
    replicas: list[Replica], fleet: tuple[float, float], more: int
) -> None:
    first, *others = replicas
    better = replace(first, matched=min(20_000, first.matched + more))
    before = cost_of(first.name, replicas, fleet)
    assert cost_of(first.name, [better, *others], fleet) <= before + 1e-9 * (1.0 + abs(before))
    for other in others:
        was = cost_of(other.name, replicas, fleet)
        assert cost_of(other.name, [better, *others], fleet) >= was - 1e-9 * (1.0 + abs(was))


@given(replica_lists)
def test_the_decision_tells_the_longest_match_there_was(replicas: list[Replica]) -> None:
    decision = decide(*replicas)
    assert decision.best_matched_tokens == max(each.matched for each in replicas)
    assert (decision.reason is Reason.BALANCED) <= (decision.matched_tokens < decision.best_matched_tokens)
