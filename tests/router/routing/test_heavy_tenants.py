"""Routing a light tenant's request as if a heavy one's prefills were not there, as the replicas will have it."""

from __future__ import annotations

import random

import pytest

from protocol.speeds import Speeds
from router.requests.routed_request import Reason
from router.routing.costs import price_of_a_copy
from router.routing.heavy_tenants import HEAVY_S
from router.routing.loads import RoutingRequest
from router.routing.policy import choose
from router.routing.prefill_board import PrefillBoard

TOKENS_PER_S = 1000
REPLICAS = ("a", "b")
FLOOD = int(HEAVY_S * TOKENS_PER_S) + 1


def board() -> PrefillBoard:
    made = PrefillBoard()
    for replica in REPLICAS:
        made.add(replica)
        speeds = Speeds(0.0, 1 / TOKENS_PER_S, 0.0, 0.0, 0.0)
        made.report(replica, waiting_prefill_tokens=0, num_in_flight=0, speeds=speeds)
    return made


def send(
    to: PrefillBoard,
    replica: str,
    name: str,
    num_tokens: int,
    tenant: bytes = b"heavy",
    weight: float = 1.0,
) -> None:
    to.dispatched(
        replica, name, num_uncached=num_tokens, num_cached=0, now_s=0.0, tenant=tenant, weight=weight
    )


def flooded() -> PrefillBoard:
    made = board()
    for replica in REPLICAS:
        send(made, replica, f"flood-{replica}", FLOOD)
    return made


def num_seen(of: PrefillBoard, tenant: bytes, weight: float = 1.0) -> int:
    return sum(map(len, of.columns(1.0, tenant=tenant, weight=weight).unfinished))


@pytest.mark.parametrize(("tenant", "seen"), [(b"light", 0), (b"heavy", 2)])
def test_a_floods_prefills_are_in_nobodys_way_but_its_own(tenant: bytes, seen: int) -> None:
    assert num_seen(flooded(), tenant) == seen


def test_what_its_own_tenant_has_there_still_counts() -> None:
    made = flooded()
    send(made, "a", "mine", 100, b"light")
    loads = made.columns(1.0, tenant=b"light")
    assert [len(each) for each in loads.unfinished] == [1, 0]
    assert loads.backlog_s == pytest.approx(0.05)


def test_a_copy_costs_a_light_tenant_what_it_costs_a_calm_fleet() -> None:
    assert price_of_a_copy(flooded().columns(1.0, tenant=b"light")) == 1.0
    assert price_of_a_copy(flooded().columns(1.0, tenant=b"heavy")) > 4.0


def test_a_light_tenants_requests_spread_when_they_wait_for_each_other() -> None:
    """At the flood's price they would all wait for the one that holds their system prompt."""
    made = flooded()
    for number in range(4):
        send(made, "a", f"mine-{number}", 490, b"light")
    request = RoutingRequest(1000, [500, 0])
    decisions = {
        tenant: choose(request, made.columns(0.0, tenant=tenant), random.Random(0))
        for tenant in (b"light", b"heavy")
    }
    assert decisions[b"light"].reason is Reason.BALANCED
    assert decisions[b"heavy"].reason is Reason.PREFIX


@pytest.mark.parametrize("num_tokens", [FLOOD // 2, 1])
def test_a_tenant_with_little_waiting_counts_for_everybody(num_tokens: int) -> None:
    made = board()
    for replica in REPLICAS:
        send(made, replica, f"some-{replica}", num_tokens)
    assert num_seen(made, b"light") == 2


def test_a_tenant_that_has_half_as_much_waiting_is_not_light() -> None:
    made = flooded()
    send(made, "a", "mine", FLOOD + 10, b"other")
    assert num_seen(made, b"other") == 3
    assert num_seen(made, b"other", weight=2.0) == 1


def test_a_flood_that_is_over_is_forgotten() -> None:
    made = flooded()
    made.prefilled("a", "flood-a")
    made.ended("a", "flood-a")
    made.remove("b")
    send(made, "a", "late", 1)
    assert num_seen(made, b"light") == 1
    made.check_integrity()
