"""Who gets the prefill budget: the orders by themselves, on sequences that no scheduler knows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.kv.block_table import BlockTable
from workers.scheduling.admission import AdmissionOrder, Moment
from workers.scheduling.admission_orders import FirstComeFirstServed, LongestMatchFirst, ResponseRatio
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.request import Request
from workers.scheduling.sequence import Lengths, Sequence
from workers.scheduling.waiting_line import SLICE_S, WaitingLine

S_PER_TOKEN = 1 / 1000
ORDERS = [FirstComeFirstServed, LongestMatchFirst, ResponseRatio]


def waiting(arrival: int, num_tokens: int = 100, arrived_s: float = 0.0, priority: int = 0) -> Sequence:
    tokens = array("i", range(num_tokens))
    request = Request(f"request-{arrival}", pack_tokens(tokens), SamplingParams(), priority=priority)
    live = LiveRequest(request, arrival, arrived_s)
    lengths = Lengths(num_tokens, num_tokens, num_tokens + 10)
    return Sequence(live, 0, tokens, BlockTable([], b""), lengths, frozenset())


def moment(now_s: float, cached: Mapping[Sequence, int] | None = None) -> Moment:
    found = cached or {}
    return Moment(now_s, S_PER_TOKEN, lambda each: len(each.tokens) - found.get(each, 0))


def line(order: AdmissionOrder, sequences: Iterable[Sequence]) -> AdmissionOrder:
    for sequence in sequences:
        order.add(sequence)
    return order


def arrivals(order: AdmissionOrder, at: Moment) -> list[int]:
    return [each.live.arrival for each in order.ranked(at)]


def test_first_come_first_served_goes_by_arrival_within_a_class() -> None:
    order = line(FirstComeFirstServed(), [waiting(1, priority=1), waiting(3), waiting(2, num_tokens=9)])
    assert arrivals(order, moment(0.0)) == [2, 3, 1]


def test_who_comes_back_gets_its_old_place() -> None:
    sequences = [waiting(1), waiting(2), waiting(3)]
    order = line(FirstComeFirstServed(), sequences)
    assert arrivals(order, moment(0.0)) == [1, 2, 3]
    order.remove(sequences[1])
    assert arrivals(order, moment(0.1)) == [1, 3]
    order.add(sequences[1])
    assert arrivals(order, moment(0.2)) == [1, 2, 3]


def test_the_longest_match_goes_first_and_arrival_decides_between_equals() -> None:
    first, second, third = waiting(1), waiting(2), waiting(3, num_tokens=500)
    order = line(LongestMatchFirst(), [first, second, third])
    assert arrivals(order, moment(0.0, {third: 48, second: 16, first: 16})) == [3, 1, 2]


def test_a_short_newcomer_overtakes_a_long_one_that_has_waited_a_little() -> None:
    order = line(ResponseRatio(), [waiting(1, num_tokens=5000), waiting(2, num_tokens=100, arrived_s=3.0)])
    assert arrivals(order, moment(3.0)) == [2, 1]


def test_waiting_brings_a_long_one_before_any_newcomer() -> None:
    order = line(ResponseRatio(), [waiting(1, num_tokens=5000), waiting(2, num_tokens=100, arrived_s=60.0)])
    assert arrivals(order, moment(60.0)) == [1, 2]


def test_what_is_cached_does_not_count_as_remaining() -> None:
    long, short = waiting(1, num_tokens=5000), waiting(2)
    order = line(ResponseRatio(), [short, long])
    assert arrivals(order, moment(0.0, {long: 4990})) == [1, 2]


def test_the_end_of_a_long_context_costs_more_than_as_many_tokens_without_one() -> None:
    long, short = waiting(1, num_tokens=50_000), waiting(2, num_tokens=500)
    order = line(ResponseRatio(), [long, short])
    cached = {long: 49_550}
    assert arrivals(order, moment(0.0, cached)) == [1, 2]
    with_attention = replace(moment(SLICE_S, cached), prefill_s_per_pair=S_PER_TOKEN / 50_000)
    assert arrivals(order, with_attention) == [2, 1]


def test_matches_are_read_again_once_a_slice() -> None:
    long, short = waiting(1, num_tokens=5000), waiting(2)
    order = line(ResponseRatio(), [long, short])
    assert arrivals(order, moment(0.0)) == [2, 1]
    assert arrivals(order, moment(SLICE_S / 2, {long: 4990})) == [2, 1]
    assert arrivals(order, moment(SLICE_S, {long: 4990})) == [1, 2]


def test_a_newcomer_gets_its_place_before_the_slice_is_over() -> None:
    order = line(ResponseRatio(), [waiting(1, num_tokens=5000), waiting(2, num_tokens=9000)])
    assert arrivals(order, moment(0.0)) == [1, 2]
    order.add(waiting(3, num_tokens=10))
    order.add(waiting(4, num_tokens=7000))
    assert arrivals(order, moment(0.01)) == [3, 1, 4, 2]


def test_a_newcomer_may_leave_before_it_was_ever_ranked() -> None:
    gone = waiting(2)
    order = line(FirstComeFirstServed(), [waiting(1), gone])
    order.remove(gone)
    assert gone not in order
    assert arrivals(order, moment(0.0)) == [1]


@pytest.mark.parametrize("kind", ORDERS)
def test_a_better_class_goes_first_in_every_order(kind: type[WaitingLine]) -> None:
    late = waiting(2, num_tokens=9000, priority=-1)
    order = line(kind(), [waiting(1, num_tokens=10), late])
    assert arrivals(order, moment(0.0)) == [2, 1]


@pytest.mark.parametrize("kind", ORDERS)
def test_waiting_improves_a_class_in_every_order(kind: type[WaitingLine]) -> None:
    patient = waiting(1, priority=2)
    order = line(kind(30.0), [patient, waiting(2, num_tokens=90, arrived_s=59.0, priority=0)])
    assert arrivals(order, moment(59.0)) == [2, 1]
    assert arrivals(order, moment(60.0)) == [1, 2]


def test_without_ageing_a_class_stays_what_it_is() -> None:
    order = line(ResponseRatio(None), [waiting(1, priority=1), waiting(2, arrived_s=9000.0)])
    assert arrivals(order, moment(9000.0)) == [2, 1]


def test_ageing_changes_nothing_between_requests_of_one_class() -> None:
    order = line(
        ResponseRatio(30.0), [waiting(1, num_tokens=100_000), waiting(2, num_tokens=20, arrived_s=95.0)]
    )
    assert arrivals(order, moment(95.0)) == [2, 1]


def test_one_of_a_better_class_that_arrives_within_a_slice_meets_those_who_have_aged() -> None:
    order = line(FirstComeFirstServed(30.0), [waiting(1, priority=1), waiting(2, priority=9)])
    assert arrivals(order, moment(40.0)) == [1, 2]
    order.add(waiting(3, arrived_s=40.1, priority=0))
    assert arrivals(order, moment(40.1)) == [1, 3, 2]


@settings(deadline=None)
@given(
    kind=st.sampled_from(ORDERS),
    moves=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2), st.integers(1, 400)), max_size=40),
)
def test_a_line_is_at_any_time_what_sorting_all_anew_would_give(
    kind: type[WaitingLine], moves: list[tuple[int, int, int]]
) -> None:
    order, inside, now = kind(30.0), dict[int, Sequence](), moment(100.0)
    for number, (who, priority, num_tokens) in enumerate(moves):
        if who in inside:
            order.remove(inside.pop(who))
        else:
            inside[who] = waiting(number, num_tokens, arrived_s=float(num_tokens % 100), priority=priority)
            order.add(inside[who])
        fresh = line(kind(30.0), inside.values())
        found = arrivals(order, now)
        assert len(order) == len(found) == len(inside)
        assert sorted(found) == sorted(each.live.arrival for each in inside.values())
        if min((each.live.request.priority for each in inside.values()), default=0) == 0:
            assert found == arrivals(fresh, now)


@settings(deadline=None)
@given(
    sizes=st.tuples(st.integers(100, 20_000), st.integers(100, 20_000)),
    apart_s=st.floats(0.0, 20.0),
    chunk=st.integers(50, 2000),
)
@example(sizes=(201, 100), apart_s=0.1875, chunk=50)  # meets within a slice
def test_two_begun_prefills_do_not_take_turns(sizes: tuple[int, int], apart_s: float, chunk: int) -> None:
    first, second = (waiting(index, size, index * apart_s) for index, size in enumerate(sizes))
    order = line(ResponseRatio(), [first])
    now_s, computed, served = 0.0, {first: 0, second: 0}, list[int]()
    while len(order):
        if second not in order and not computed[second] and now_s >= apart_s:
            order.add(second)
        best = next(iter(order.ranked(moment(now_s, computed))))
        best.row = best.live.arrival  # it has begun
        served.append(best.live.arrival)
        computed[best] = min(computed[best] + chunk, len(best.tokens))
        now_s += chunk * S_PER_TOKEN
        if computed[best] == len(best.tokens):
            order.remove(best)
    assert sum(one != other for one, other in pairwise(served)) <= 2
