"""How heavy tenants come behind light ones: the accounts by themselves, and lines that ask them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.kv.block_table import BlockTable
from workers.scheduling.admission import Moment
from workers.scheduling.admission_orders import FirstComeFirstServed, LongestMatchFirst, ResponseRatio
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.request import Request
from workers.scheduling.sequence import Lengths, Sequence
from workers.scheduling.tenants import CREDIT_S, HEAVY_S, HEAVY_SEQUENCES, MOST_IDLE, SLACK_S, Tenants
from workers.scheduling.waiting_line import SLICE_S, WaitingLine

TOKENS_PER_S = 100
HEAVY = int(HEAVY_S * TOKENS_PER_S) + 1  # tokens of a line that make its tenant heavy
CREDIT = CREDIT_S * TOKENS_PER_S
SLACK = SLACK_S * TOKENS_PER_S
ORDERS = [FirstComeFirstServed, LongestMatchFirst, ResponseRatio]


def waiting(
    arrival: int, tenant: bytes = b"", num_tokens: int = 10, weight: float = 1.0, priority: int = 0
) -> Sequence:
    tokens = array("i", range(num_tokens))
    request = Request(
        f"request-{arrival}",
        pack_tokens(tokens),
        SamplingParams(),
        priority=priority,
        tenant=tenant,
        weight=weight,
    )
    lengths = Lengths(num_tokens, num_tokens, num_tokens + 10)
    sequence = Sequence(
        LiveRequest(request, arrival, 0.0), 0, tokens, BlockTable([], b""), lengths, frozenset()
    )
    sequence.backlog_tokens = num_tokens
    return sequence


def moment(now_s: float, decoding: list[Sequence] | None = None) -> Moment:
    return Moment(now_s, 1 / TOKENS_PER_S, lambda each: each.backlog_tokens, decoding=decoding or [])


def arrivals(order: WaitingLine, now_s: float, decoding: list[Sequence] | None = None) -> list[int]:
    return [each.live.arrival for each in order.ranked(moment(now_s, decoding))]


def flooded(order: WaitingLine, tenant: bytes = b"heavy") -> list[Sequence]:
    """A line full of its requests, ranked once, of which the first has been served for twice the credit."""
    flood = [waiting(number, tenant, HEAVY) for number in range(1, 4)]
    for sequence in flood:
        order.add(sequence)
    order.charge(flood[0], int(2 * CREDIT))
    assert arrivals(order, 0.0) == [1, 2, 3]
    return flood


@pytest.mark.parametrize("kind", ORDERS)
def test_who_comes_new_goes_before_a_flood(kind: type[WaitingLine]) -> None:
    order = kind()
    flooded(order)
    order.add(waiting(9, b"light", 5000))
    assert arrivals(order, 0.01) == [9, 1, 2, 3]
    assert arrivals(order, SLICE_S) == [9, 1, 2, 3]


def test_a_tenant_alone_is_on_one_level_whatever_it_has_had() -> None:
    order = FirstComeFirstServed()
    flood = flooded(order)
    order.charge(flood[0], int(10 * CREDIT))
    late = waiting(0, b"heavy")
    order.add(late)
    assert arrivals(order, 0.01) == [0, 1, 2, 3]
    assert {each.live.account.level for each in [*flood, late]} == {0}


def test_a_tenant_of_which_little_waits_goes_first_though_it_has_had_more() -> None:
    order = FirstComeFirstServed()
    flooded(order)
    served = waiting(4, b"often here", HEAVY - 1)
    order.add(served)
    order.charge(served, int(CREDIT - SLACK) - 1)
    assert arrivals(order, SLICE_S) == [4, 1, 2, 3]


def test_one_long_prompt_does_not_make_a_tenant_heavy() -> None:
    order = FirstComeFirstServed()
    flooded(order)
    order.add(waiting(9, b"light", 100 * HEAVY))
    assert arrivals(order, SLICE_S) == [9, 1, 2, 3]
    order.add(waiting(8, b"light", HEAVY))
    assert arrivals(order, 2 * SLICE_S) == [1, 2, 3, 8, 9]


def test_many_short_ones_make_a_tenant_heavy_too() -> None:
    order = FirstComeFirstServed()
    for number in range(HEAVY_SEQUENCES + 1):
        order.add(waiting(number, b"many", 1))
    order.ranked(moment(0.0))
    order.add(waiting(99, b"light"))
    assert arrivals(order, 0.01)[0] == 99


def test_while_nobody_is_heavy_all_are_on_one_level() -> None:
    order = FirstComeFirstServed()
    served = waiting(1, b"often here", HEAVY - 1)
    for sequence in (served, waiting(2, b"light")):
        order.add(sequence)
    order.charge(served, int(2 * CREDIT))
    assert arrivals(order, 0.0) == [1, 2]


def test_a_better_class_goes_before_a_lighter_tenant() -> None:
    order = FirstComeFirstServed()
    flooded(order)
    order.add(waiting(8, b"light"))
    order.add(waiting(9, b"heavy", priority=-1))
    assert arrivals(order, 0.01) == [9, 8, 1, 2, 3]


def test_but_not_beyond_its_credit() -> None:
    order = FirstComeFirstServed()
    flooded(order)
    served = waiting(0, b"always here", HEAVY - 1)
    order.add(served)
    order.charge(served, int(CREDIT + SLACK) + 1)
    assert arrivals(order, SLICE_S) == [1, 2, 3, 0]


def test_two_floods_are_on_one_level_within_the_slack() -> None:
    order = FirstComeFirstServed()
    flooded(order)
    other = [waiting(number, b"other", HEAVY) for number in (-1, 0)]
    for sequence in other:
        order.add(sequence)
    assert arrivals(order, SLICE_S) == [-1, 0, 1, 2, 3]
    order.charge(other[0], int(SLACK) - 1)
    assert arrivals(order, 2 * SLICE_S) == [-1, 0, 1, 2, 3]
    order.charge(other[0], 2)
    assert arrivals(order, 3 * SLICE_S) == [1, 2, 3, -1, 0]


def test_two_floods_are_served_in_turn_by_their_weights() -> None:
    order = FirstComeFirstServed()
    for number, (name, weight) in enumerate([(b"one", 1.0), (b"three", 3.0)] * 2):
        order.add(waiting(number, name, HEAVY, weight))
    served = {b"one": 0, b"three": 0}
    for turn in range(4000):
        first = next(iter(order.ranked(moment(turn * SLICE_S))))
        order.charge(first, 25)
        served[first.live.request.tenant] += 25
    assert served[b"three"] == pytest.approx(3 * served[b"one"], rel=0.02)


def test_generated_tokens_count_twice_and_once_only() -> None:
    order = FirstComeFirstServed()
    sequence = waiting(1, b"a", 100)
    order.add(sequence)
    order.remove(sequence)
    before = sequence.live.account.tokens
    sequence.tokens.extend(range(30))
    order.charge(sequence)
    order.charge(sequence)
    assert sequence.live.account.tokens - before == 60.0


def test_who_decodes_is_charged_when_others_wait() -> None:
    order = FirstComeFirstServed()
    decoding = waiting(1, b"talker", HEAVY)
    order.add(decoding)
    order.remove(decoding)
    decoding.tokens.extend(range(int(CREDIT)))
    for number, tenant in enumerate((b"talker", b"talker", b"other", b"other")):
        order.add(waiting(number, tenant, HEAVY))
    assert arrivals(order, 0.0, [decoding]) == [2, 3, 0, 1]


def measured() -> Tenants:
    tenants = Tenants()
    tenants.settle(1 / TOKENS_PER_S)
    return tenants


def test_a_pause_earns_nothing() -> None:
    tenants = measured()
    busy, away = tenants.enter(b"busy"), tenants.enter(b"away")
    tenants.leave(away)
    tenants.charge(b"busy", busy, 100 * CREDIT)
    tenants.settle(1 / TOKENS_PER_S)
    assert busy.tokens == tenants.enter(b"away").tokens == 100 * CREDIT


def test_whoever_has_had_no_more_than_those_who_wait_is_forgotten_when_idle() -> None:
    tenants = measured()
    busy, idle = tenants.enter(b"busy"), tenants.enter(b"idle")
    tenants.leave(idle)
    tenants.charge(b"idle", idle, CREDIT)
    tenants.charge(b"busy", busy, CREDIT - 1)
    tenants.settle(1 / TOKENS_PER_S)
    assert len(tenants) == 2
    tenants.charge(b"busy", busy, CREDIT)
    tenants.settle(1 / TOKENS_PER_S)
    assert len(tenants) == 1


def test_debts_are_kept_over_a_pause() -> None:
    tenants = measured()
    other, heavy = tenants.enter(b"other"), tenants.enter(b"heavy")
    tenants.charge(b"heavy", heavy, 5 * CREDIT)
    tenants.leave(heavy)
    tenants.settle(1 / TOKENS_PER_S)
    assert tenants.enter(b"heavy").tokens - other.tokens == 5 * CREDIT


def test_too_many_idle_tenants_are_forgotten_debts_and_all() -> None:
    tenants = measured()
    tenants.enter(b"here")
    for number in range(MOST_IDLE + 1):
        name = b"%d" % number
        account = tenants.enter(name)
        tenants.charge(name, account, 9 * CREDIT)
        tenants.leave(account)
    tenants.settle(1 / TOKENS_PER_S)
    assert len(tenants) == 1


def test_who_was_forgotten_while_it_decoded_is_remembered_when_charged() -> None:
    tenants = measured()
    account = tenants.enter(b"decodes")
    tenants.leave(account)
    busy = tenants.enter(b"busy")
    tenants.charge(b"busy", busy, 9 * CREDIT)
    tenants.settle(1 / TOKENS_PER_S)
    assert len(tenants) == 1
    tenants.charge(b"decodes", account, 20 * CREDIT)
    assert tenants.enter(b"decodes") is account


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(InvalidRequest, match="weight must be above zero"):
        waiting(1, weight=weight)


# In the scheduler

Make = Callable[..., Any]
PROMPT = 40
ROOM = {"num_blocks": 400, "block_size": 4, "max_num_batched_tokens": 40, "max_model_len": 4000}


def crowd(driver: Any, num_requests: int, **wishes: Any) -> None:
    """Requests of the heavy tenant, far more than the replica can run at once, some of which have been served."""
    driver.scheduler.prefill_s_per_token = 0.1
    for number in range(num_requests):
        first = 10 * number + 7
        driver.add(range(first, first + PROMPT), f"heavy-{number}", tenant=b"heavy", **wishes)
    driver.step_s = 0.5
    for _ in range(30):
        driver.step()


def steps_to_first_token(driver: Any, name: str, most: int = 400) -> int:
    for number in range(1, most):
        driver.step()
        if driver.tokens_of(name):
            return number
    raise AssertionError("it never got a token")


def served(driver: Any) -> Mapping[str, int]:
    return {each.request_id: 1 for each in driver.outputs if each.request_id.startswith("heavy")}


@pytest.mark.parametrize(("tenant", "at_once"), [(b"light", True), (b"heavy", False)])
def test_a_light_tenants_requests_do_not_wait_for_a_flood(
    make_driver: Make, tenant: bytes, at_once: bool
) -> None:
    driver = make_driver(**ROOM, max_num_seqs=40)
    crowd(driver, 60, max_tokens=2)
    driver.add(range(PROMPT - 5), tenant=tenant)
    driver.add(range(500, 500 + PROMPT), "last", tenant=tenant)
    assert (steps_to_first_token(driver, "last") <= 3) is at_once
    driver.run()


def test_a_row_is_taken_from_the_tenant_that_has_had_most(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=4)
    crowd(driver, 40, max_tokens=300)
    assert driver.scheduler.load().num_running == 4
    driver.add(range(PROMPT - 5), "light", tenant=b"light", max_tokens=2)
    assert steps_to_first_token(driver, "light") <= 2
    assert driver.scheduler.load().num_preemptions == 1


def test_blocks_are_taken_from_the_tenant_that_has_had_most(make_driver: Make) -> None:
    driver = make_driver(**{**ROOM, "num_blocks": 61}, max_num_seqs=40)
    crowd(driver, 40, max_tokens=100)
    assert driver.scheduler.load().num_used_blocks > 50
    driver.add(range(200, 200 + 3 * PROMPT), "light", tenant=b"light", max_tokens=2)
    assert steps_to_first_token(driver, "light") <= 4


def test_a_heavy_tenant_takes_no_row_back(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=4)
    crowd(driver, 40, max_tokens=300)
    for number in range(2):
        driver.add(range(100 * number, 100 * number + PROMPT), tenant=b"light", max_tokens=100)
    for _ in range(80):
        driver.step()
    assert driver.scheduler.load().num_preemptions == 2


def test_nor_does_a_second_heavy_one(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=4)
    crowd(driver, 40, max_tokens=300)
    for number in range(40):
        driver.add(range(9 * number, 9 * number + PROMPT), tenant=b"second", max_tokens=300)
    for _ in range(80):
        driver.step()
    assert driver.scheduler.load().num_preemptions == 0


def test_no_more_rows_are_taken_than_a_heavy_tenant_has(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=2)
    crowd(driver, 40, max_tokens=300)
    for number in range(3):
        driver.add(range(100 * number, 100 * number + 5), tenant=b"light", max_tokens=30)
    for _ in range(10):
        driver.step()
    assert driver.scheduler.load().num_preemptions == 2


def test_a_long_prompt_begins_beside_two_of_a_heavier_tenant(make_driver: Make) -> None:
    driver = make_driver(**{**ROOM, "num_blocks": 3000}, max_num_seqs=8)
    driver.scheduler.prefill_s_per_token = 0.1
    driver.step_s = 0.5
    for num_tokens in (800, 400):
        driver.add(range(num_tokens), tenant=b"heavy", isolation=b"%d" % num_tokens)
        driver.step()
    for number in range(3):
        driver.add(range(600), tenant=b"heavy", isolation=b"more-%d" % number)
    driver.add(range(200), "light", tenant=b"light", isolation=b"light")
    assert steps_to_first_token(driver, "light") <= 6


def test_what_has_been_computed_and_generated_is_charged_by_the_end(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=4)
    driver.add(range(PROMPT), "it", tenant=b"one", max_tokens=30)
    account = driver.scheduler._requests["it"].account
    driver.run()
    assert account.tokens == PROMPT + 2 * 30


def test_a_second_flood_does_not_shut_out_the_first(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=40)
    crowd(driver, 60, max_tokens=2)
    for number in range(60):
        driver.add(range(3 * number, 3 * number + PROMPT), f"second-{number}", tenant=b"second", max_tokens=2)
    num_before = len(driver.outputs)
    for _ in range(20):
        driver.step()
    firsts = {each.request_id.split("-")[0] for each in driver.outputs[num_before + 10 :]}
    assert firsts == {"heavy", "second"}


def test_nobody_is_left_waiting_by_another_tenants_stream(make_driver: Make) -> None:
    """Also the one that is put behind gets its share, as a stream of light requests is one of a tenant too."""
    driver = make_driver(**ROOM, max_num_seqs=4)
    crowd(driver, 10, max_tokens=2)
    for number in range(200):
        driver.add(range(number, number + PROMPT), f"stream-{number}", tenant=b"stream", max_tokens=2)
        driver.step()
    assert len(served(driver)) == 10


def test_with_one_tenant_nobody_is_preempted_for_another(make_driver: Make) -> None:
    driver = make_driver(**ROOM, max_num_seqs=4)
    crowd(driver, 30, max_tokens=20)
    driver.add(range(PROMPT), "more", tenant=b"heavy")
    driver.run()
    assert driver.scheduler.load().num_preemptions == 0
