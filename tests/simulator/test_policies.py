"""The policies by their rules, each on a fleet whose caches and loads are set by hand."""

from __future__ import annotations

import pytest

from protocol.errors import InvalidRequest
from simulator.comparison import simulate
from simulator.fleet import Fleet
from simulator.policies import by_cost, by_load, by_prefix
from simulator.policies.ours import ExpectedBlocks, Trunkline
from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES, chosen
from simulator.replica import NEVER, Replica
from simulator.service_model import ServiceModel
from simulator.simulation import Deployment
from simulator.trace import BLOCK_TOKENS, TraceRequest
from workers.scheduling.admission_orders import FirstComeFirstServed


def request(num_blocks: int, index: int = 0, first: int = 0) -> TraceRequest:
    blocks = tuple(range(first, first + num_blocks))
    return TraceRequest(index, 0.0, num_blocks * BLOCK_TOKENS, 10, blocks)


def fleet_of(num_replicas: int, cached: dict[int, int] | None = None) -> Fleet:
    """With so many of the blocks 0, 1, … cached at these replicas."""
    fleet = Fleet(num_replicas, 1000, ServiceModel(), seed=0)
    fleet.replicas = [
        Replica(fleet.model, cache, FirstComeFirstServed(), NEVER) for cache in fleet.caches(shared=False)
    ]
    for replica, depth in (cached or {}).items():
        cache = fleet.replicas[replica].cache
        cache.insert(range(depth), 0)
        cache.release(range(depth))
    return fleet


def test_least_tokens_looks_at_queued_tokens_alone() -> None:
    fleet = fleet_of(3, {0: 10})
    fleet.queued_tokens[:] = [9, 5, 7]
    assert by_load.LeastQueuedTokens(fleet).choose(request(10)) == 1


def test_round_robin_takes_turns() -> None:
    policy = by_load.RoundRobin(fleet_of(3))
    assert [policy.choose(request(1, index)) for index in range(5)] == [0, 1, 2, 0, 1]


def test_a_session_keeps_its_place_until_that_has_more_than_its_share() -> None:
    fleet = fleet_of(4)
    policy = by_load.SessionHash(fleet)
    home = policy.choose(request(3))
    assert {policy.choose(request(depth)) for depth in range(1, 9)} == {home}
    fleet.in_flight[home] = 10
    assert policy.choose(request(3)) != home


def test_longest_prefix_heeds_no_load() -> None:
    fleet = fleet_of(3, {1: 3, 2: 4})
    fleet.in_flight[2] = 1000
    assert by_prefix.LongestPrefix(fleet).choose(request(10)) == 2


def test_sglang_follows_a_match_of_more_than_its_threshold_only() -> None:
    fleet = fleet_of(2)
    policy = by_prefix.SglangRouter(fleet)
    policy.dispatched(request(10), 1)
    fleet.in_flight[:] = [0, 5]
    assert policy.choose(request(30)) == 1
    assert policy.choose(request(40)) == 0


def test_sglang_drops_all_affinity_when_counts_differ_much() -> None:
    fleet = fleet_of(2)
    policy = by_prefix.SglangRouter(fleet)
    policy.dispatched(request(10), 1)
    fleet.in_flight[:] = [0, 65]
    assert policy.choose(request(10)) == 0


def test_smg_gates_only_the_chosen_tenant() -> None:
    fleet = fleet_of(3)
    policy = by_prefix.Smg(fleet)
    policy.dispatched(request(10), 1)
    fleet.in_flight[:] = [0, 90, 90]
    assert policy.choose(request(10)) == 1
    fleet.in_flight[:] = [0, 190, 0]
    assert policy.choose(request(10)) in (0, 2)


def test_ray_sends_what_nobody_has_to_the_smallest_tenant() -> None:
    fleet = fleet_of(2)
    policy = by_prefix.RayPrefixCacheAffinity(fleet)
    policy.dispatched(request(10), 0)
    assert policy.choose(request(5, first=100)) == 1
    assert policy.choose(request(10)) == 0


def test_an_index_of_dispatches_forgets_the_tails_of_the_oldest() -> None:
    index = by_prefix.DispatchIndex(2, capacity=4)
    index.add((1, 2, 3), 0)
    index.add((7, 8), 0)
    assert (index.match((1, 2, 3)), index.match((7, 8)), index.sizes()) == ([2, 0], [2, 0], [4, 0])


def test_llm_d_weighs_prefix_memory_and_queue_three_to_two_to_two() -> None:
    fleet = fleet_of(2)
    policy = by_cost.LlmD(fleet)
    policy.dispatched(request(6), 1)
    fleet.prefilling[:] = [0, 1]
    assert policy.choose(request(8)) == 1  # 3 * 6/8 > 2
    assert policy.choose(request(10)) == 0  # 3 * 6/10 < 2


def test_dynamo_adds_up_blocks_to_prefill_and_blocks_in_flight() -> None:
    fleet = fleet_of(2, {1: 6})
    fleet.active_blocks[:] = [0, 5]
    assert by_cost.Dynamo(fleet).choose(request(10)) == 1
    fleet.active_blocks[:] = [0, 7]
    assert by_cost.Dynamo(fleet).choose(request(10)) == 0


def test_preble_goes_to_the_holder_if_more_is_cached_than_not() -> None:
    fleet = fleet_of(2, {1: 6})
    policy = by_cost.Preble(fleet)
    policy.dispatched(request(100, index=1, first=500), 1)
    assert policy.choose(request(11, index=2)) == 1
    assert policy.choose(request(12, index=3)) == 0


def test_preble_forgets_load_after_three_minutes() -> None:
    fleet = fleet_of(2, {1: 1})
    policy = by_cost.Preble(fleet)
    policy.dispatched(request(100, index=1, first=500), 1)
    assert policy.choose(request(12, index=2)) == 0
    fleet.now_s = 181.0
    assert policy.choose(request(12, index=3)) == 1


def test_lmetric_multiplies_tokens_to_prefill_and_requests_in_flight() -> None:
    fleet = fleet_of(2, {1: 5})
    fleet.in_flight[:] = [0, 0]
    assert by_cost.LMetric(fleet).choose(request(10)) == 1
    fleet.in_flight[:] = [0, 2]
    assert by_cost.LMetric(fleet).choose(request(10, index=1)) == 0


def test_ours_expects_the_blocks_of_a_prefill_that_has_not_ended() -> None:
    fleet = fleet_of(4)
    policy = Trunkline(fleet)
    first = request(40)
    home = policy.choose(first)
    policy.dispatched(first, home)
    fleet.dispatched(first, home)
    assert policy.choose(request(42, index=1)) == home


def test_expected_blocks_are_counted_by_dispatch() -> None:
    expected = ExpectedBlocks()
    expected.add(request(3), 1)
    expected.add(request(2), 1)
    expected.add(request(2), 0)
    expected.discard(request(3), 1)
    assert expected.masks == {0: 0b11, 1: 0b11}
    expected.discard(request(2), 1)
    expected.discard(request(2), 0)
    assert expected.masks == {}


def test_the_oracle_hits_at_least_as_much_as_any_peer(sequential_trace: list[TraceRequest]) -> None:
    """While nobody waits for the prefill of what it shares, and least recently used is never the wrong choice."""
    order = (OUR_ORDER, ORDERS[OUR_ORDER])
    hits = {
        name: simulate(sequential_trace, Deployment(4, 10_000), (name, policy), order).hit_rate
        for name, policy in POLICIES.items()
    }
    assert hits["oracle"] == max(hits.values()) and hits["random"] < hits["oracle"]


def test_one_shared_first_block_does_not_collapse_ours(busy_trace: list[TraceRequest]) -> None:
    order = (OUR_ORDER, ORDERS[OUR_ORDER])
    ours, longest, least = (
        simulate(busy_trace, Deployment(4, 60), (name, POLICIES[name]), order)
        for name in ("trunkline", "longest-prefix", "least-tokens")
    )
    assert ours.busy_imbalance < 1.2 < longest.busy_imbalance
    assert ours.mean_ttft_s < least.mean_ttft_s and ours.hit_rate > least.hit_rate


def test_a_policy_that_is_not_known_is_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest, match=r"--policy must be all or one of random, .*, not 'best'"):
        chosen("best", POLICIES, "--policy")
