"""Several routers, news that comes late, and replicas of unequal speed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.comparison import Row, summary
from simulator.news import News
from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES
from simulator.service_model import ServiceModel
from simulator.simulation import Deployment, Simulation, Slowdown
from simulator.trace import TraceRequest

FLEET = Deployment(4, 60)
CONDITIONS = [
    replace(FLEET, num_routers=3),
    replace(FLEET, event_lag_s=0.7),
    replace(FLEET, num_routers=2, event_lag_s=0.05, slowdowns=(Slowdown(1, 3.0, 5.0), Slowdown(9, 2.0))),
]


def ran(requests: list[TraceRequest], deployment: Deployment, policy: str = "trunkline") -> Simulation:
    simulation = Simulation(requests, deployment, POLICIES[policy], ORDERS[OUR_ORDER])
    simulation.run()
    return simulation


def row(requests: list[TraceRequest], deployment: Deployment) -> Row:
    return summary(ran(requests, deployment), "trunkline", OUR_ORDER)


@pytest.mark.parametrize("policy", ["trunkline", "sglang", "preble", "lmetric"])
@pytest.mark.parametrize("deployment", CONDITIONS)
def test_every_request_ends_once_and_no_router_believes_that_it_runs(
    busy_trace: list[TraceRequest], policy: str, deployment: Deployment
) -> None:
    simulation = ran(busy_trace, deployment, policy)
    ended = [sequence.request.index for sequence, _ in simulation.ended]
    assert sorted(ended) == list(range(len(busy_trace)))
    for fleet in simulation.fleets:
        assert not any((*fleet.in_flight, *fleet.prefilling, *fleet.queued_tokens, *fleet.active_blocks))


def test_news_arrives_in_order_and_after_the_lag() -> None:
    news, heard = News(2.0), list[str]()
    for news.now_s, what in ((1.0, "a"), (1.0, "b"), (3.0, "c")):
        news.tell(heard.append, what)
    for until_s, expected in ((2.9, ""), (3.0, "ab"), (5.0, "abc")):
        news.deliver(until_s)
        assert "".join(heard) == expected


def test_without_a_lag_news_is_there_at_once() -> None:
    heard = list[str]()
    News(0.0).tell(heard.append, "a")
    assert heard == ["a"]


def test_a_block_is_known_when_the_news_of_it_has_come() -> None:
    news = News(1.0)
    holders = news.holders(2)
    holders.add(7, 1)
    assert holders.match((7,)) == [0, 0]
    news.deliver(1.0)
    holders.discard(7, 1)
    assert holders.match((7,)) == [0, 1]
    news.deliver(2.0)
    assert holders.match((7,)) == [0, 0]


def test_each_router_knows_of_what_the_others_sent_by_the_replicas_loads() -> None:
    """Ten long prompts of one moment, each by the next router: none sees more than a few of them itself."""
    requests = [
        TraceRequest(index, 0.01 * index, 50 * 512, 2, tuple(range(100 * index, 100 * index + 50)))
        for index in range(40)
    ]
    simulation = ran(requests, Deployment(4, 1000, num_routers=10))
    busy_s = [replica.busy_s for replica in simulation.replicas]
    assert max(busy_s) < 1.3 * min(busy_s)


def test_three_routers_hit_as_much_as_one_while_nothing_waits_long(busy_trace: list[TraceRequest]) -> None:
    """What waits is known to its own router alone."""
    calm_trace = [replace(each, arrival_s=2 * each.arrival_s) for each in busy_trace]
    roomy = replace(FLEET, cache_blocks=200)
    one, three = row(calm_trace, roomy), row(calm_trace, replace(roomy, num_routers=3))
    assert three.hit_rate > 0.98 * one.hit_rate > 0.0


def test_one_router_with_no_lag_is_what_a_simulation_is_by_default(busy_trace: list[TraceRequest]) -> None:
    explicit = replace(FLEET, num_routers=1, event_lag_s=0.0, slowdowns=())
    assert row(busy_trace, FLEET) == row(busy_trace, explicit)


@pytest.mark.parametrize("since_s", [0.0, 8.0])
def test_a_slower_replica_is_found_out_and_gets_less_work(
    busy_trace: list[TraceRequest], since_s: float
) -> None:
    simulation = ran(busy_trace, replace(FLEET, slowdowns=(Slowdown(1, 3.0, since_s),)))
    speeds, usual = (simulation.replicas[number].load.speeds for number in (1, 0))
    ratio = speeds.seconds_to_prefill(4_000, 0) / usual.seconds_to_prefill(4_000, 0)
    assert 2.0 < ratio < 4.0
    equal = ran(busy_trace, FLEET)
    assert simulation.replicas[1].busy_s < 2.0 * equal.replicas[1].busy_s  # thrice for the same tokens


def test_all_that_a_slower_model_does_takes_so_many_times_as_long() -> None:
    model, slower = ServiceModel(decode_context_s=1e-6), ServiceModel(decode_context_s=1e-6).slower(3.0)
    assert slower.prefill_time_s(100, 4_000) == pytest.approx(3 * model.prefill_time_s(100, 4_000))
    for prefilling in (False, True):
        assert slower.step_s(7, prefilling) == pytest.approx(3 * model.step_s(7, prefilling))
    assert slower.decode_context_s == pytest.approx(3 * model.decode_context_s)


def test_a_better_class_waits_less(busy_trace: list[TraceRequest]) -> None:
    requests = [replace(each, priority=each.index % 2) for each in busy_trace]
    ttfts_s: dict[int, list[float]] = {0: [], 1: []}
    for sequence, _ in ran(requests, Deployment(2, 60)).ended:
        assert sequence.ttft_s is not None
        ttfts_s[sequence.request.priority].append(sequence.ttft_s)
    assert sum(ttfts_s[0]) < 0.7 * sum(ttfts_s[1])
