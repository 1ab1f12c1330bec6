"""One tenant floods the replicas, with the product's policy and order: what another one notices of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import pytest

from simulator.exact import ExactReplicas
from simulator.fleet import Fleet
from simulator.flood import HEAVY, LIGHT, Flood, of_one_tenant, together, ttfts_s
from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES
from simulator.simulated_replica import SimulatedReplica
from simulator.simulation import Deployment, Order, Simulation, fluid_replicas
from simulator.trace import BLOCK_TOKENS, TraceRequest

Make = Callable[[Deployment, Fleet, Order, bool], Sequence[SimulatedReplica]]
CACHE_BLOCKS = 1000
FLOODS = [
    Flood(2, lasts_s=30.0),
    Flood(8, lasts_s=15.0),
    Flood(2, overload=2.0),
    Flood(4, overload=8.0, lasts_s=8.0),
]


def ran(requests: list[TraceRequest], num_replicas: int, make: Make = fluid_replicas) -> Simulation:
    deployment = Deployment(num_replicas, CACHE_BLOCKS, make_replicas=make)
    simulation = Simulation(requests, deployment, POLICIES["trunkline"], ORDERS[OUR_ORDER])
    simulation.run()
    return simulation


def lights_medians_s(flood: Flood, seeds: Sequence[int], make: Make = fluid_replicas) -> list[float]:
    """Of all that it sends under these seeds: alone, in the flood, and if nobody knew whose requests are whose."""
    found: list[list[float]] = [[], [], []]
    for each in (replace(flood, seed=seed) for seed in seeds):
        both = together(each.light(), each.heavy())
        for ttfts, requests in zip(found, (together(each.light()), both, of_one_tenant(both)), strict=True):
            ttfts += ttfts_s(ran(requests, each.num_replicas, make), each.light())
    return [median(ttfts) for ttfts in found]


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_does_not_double_anothers_median_time_to_the_first_token(flood: Flood) -> None:
    alone_s, flooded_s, as_one_tenant_s = lights_medians_s(flood, range(2))
    assert flooded_s <= 2.0 * alone_s
    assert as_one_tenant_s > 4.0 * alone_s


def test_nor_with_the_replicas_own_scheduler_step_by_step() -> None:
    alone_s, flooded_s, as_one_tenant_s = lights_medians_s(Flood(2, lasts_s=15.0), range(2), ExactReplicas())
    assert flooded_s <= 2.0 * alone_s
    assert as_one_tenant_s > 4.0 * alone_s


def test_what_the_flood_gets_through_is_not_less_for_it() -> None:
    """Work is conserved: the last prefill of all ends when it would have without tenants, but for the hits."""
    flood = Flood(2, lasts_s=30.0)
    both = together(flood.light(), flood.heavy())
    busy_s = [
        sum(replica.busy_s for replica in ran(requests, 2).replicas)
        for requests in (both, of_one_tenant(both))
    ]
    assert busy_s[0] == pytest.approx(busy_s[1], rel=0.05)


def test_tenants_that_are_in_nobodys_way_change_nothing(busy_trace: list[TraceRequest]) -> None:
    tenants = [
        TraceRequest(each.index, each.arrival_s, each.num_tokens, each.num_output_tokens, each.blocks, tenant)
        for each in busy_trace[:150]
        for tenant in ("even" if each.index % 2 else "odd",)
    ]
    assert ttfts_s(ran(tenants, 8), tenants) == ttfts_s(ran(of_one_tenant(tenants), 8), tenants)


def test_a_flood_is_the_same_again_and_as_heavy_as_it_says() -> None:
    flood = Flood(4, overload=3.0, lasts_s=100.0)
    requests = together(flood.light(), flood.heavy())
    assert requests == together(flood.light(), flood.heavy())
    seconds = {
        tenant: sum(
            flood.model.prefill_time_s(8192 if tenant == LIGHT else 0, uncached)
            for each in requests
            if each.tenant == tenant
            for uncached in (each.num_tokens - (8192 if tenant == LIGHT else 0),)
        )
        for tenant in (LIGHT, HEAVY)
    }
    assert seconds[HEAVY] / 400.0 == pytest.approx(3.0, rel=0.2)
    assert seconds[LIGHT] / 400.0 == pytest.approx(0.1, rel=0.3)


def test_a_cold_request_is_served_under_a_stream_of_hot_ones() -> None:
    """Longest match first leaves it to the end of the stream."""
    hot = tuple(range(40))
    stream = [
        TraceRequest(number, 0.06 * number, 41 * BLOCK_TOKENS, 1, (*hot, 1000 + number))
        for number in range(1200)
    ]
    cold = TraceRequest(0, 5.0, 20 * BLOCK_TOKENS, 1, tuple(range(5000, 5020)))
    waited_s = {}
    for name in ("longest-match", OUR_ORDER):
        simulation = Simulation(
            together(stream, [cold]), Deployment(1, CACHE_BLOCKS), POLICIES["trunkline"], ORDERS[name]
        )
        simulation.run()
        waited_s[name] = ttfts_s(simulation, [cold])[0]
    assert waited_s[OUR_ORDER] < 40.0 < 60.0 < waited_s["longest-match"]
