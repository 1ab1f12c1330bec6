"""Bounds on what waits and runs, in tokens and requests, and how tenants share them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidRequest, Overloaded
from protocol.sampling import SamplingParams
from protocol.speeds import Speeds
from protocol.tokens import pack_tokens
from router.requests.generation import Generation
from router.requests.overload import SPEED_AGE_S, Overload
from router.requests.routed_request import RoutedRequest
from router.requests.shares import Shares
from router.router_config import RouterConfig
from router.router_status import Refusal, RouterCounters
from router.routing.prefill_board import PrefillBoard

Make = Callable[..., Awaitable[Any]]
TOKENS_PER_S = 100


class Gate:
    """An `Overload` over replicas of a known speed, with a clock of its own."""

    def __init__(self, num_replicas: int = 1, **config: Any) -> None:
        self.now_s = 0.0
        self.board = PrefillBoard()
        self.counters = RouterCounters()
        for number in range(num_replicas):
            self.add_replica(str(number))
        self.overload = Overload(RouterConfig(**config), self.board, self.counters, lambda: self.now_s)
        self.num_taken = 0

    def add_replica(self, name: str, tokens_per_s: int = TOKENS_PER_S) -> None:
        self.board.add(name)
        speeds = Speeds(0.0, 1 / tokens_per_s, 0.0, 0.01, 0.0)
        self.board.report(name, waiting_prefill_tokens=0, num_in_flight=0, speeds=speeds)

    def take(self, num_tokens: int, tenant: bytes = b"", weight: float = 1.0) -> Generation:
        self.num_taken += 1
        request = RoutedRequest(
            str(self.num_taken),
            pack_tokens(range(num_tokens)),
            SamplingParams(),
            tenant=tenant,
            weight=weight,
        )
        self.overload.check(request, num_waiting=0, some_ready=True)
        generation = Generation(request, None)
        self.overload.enter(generation)
        return generation

    def refused(self, num_tokens: int, tenant: bytes = b"", weight: float = 1.0) -> float:
        """After how many seconds it may come again."""
        with pytest.raises(Overloaded) as raised:
            self.take(num_tokens, tenant, weight)
        assert raised.value.retry_after_s is not None
        return raised.value.retry_after_s


def test_a_prompt_beyond_the_bound_is_taken_when_nothing_waits() -> None:
    assert Gate(max_queued_tokens=100).take(1000)


def test_a_full_queue_turns_away_until_a_prefill_has_ended() -> None:
    gate = Gate(max_queued_tokens=100)
    first = gate.take(100)
    gate.refused(1)
    gate.overload.prefilled(first)
    assert gate.take(1)


def test_the_wait_is_what_it_takes_to_prefill_what_is_too_much() -> None:
    gate = Gate(max_queued_tokens=1000, num_replicas=2)
    gate.take(1000)
    assert gate.refused(600) == 3.0
    assert gate.refused(1) == 1.0
    assert gate.refused(5000) == 5.0  # then nothing waits, and it is taken whatever its length


def test_by_default_the_bound_is_what_the_fleet_prefills_in_a_minute() -> None:
    gate = Gate(num_replicas=3)
    assert gate.overload.max_queued_tokens == 3 * 60 * TOKENS_PER_S
    gate.add_replica("more")
    gate.now_s += 2 * SPEED_AGE_S
    assert gate.overload.max_queued_tokens == 4 * 60 * TOKENS_PER_S


def test_without_any_replica_tokens_are_not_bounded() -> None:
    gate = Gate(num_replicas=0)
    gate.take(10_000_000)
    assert gate.take(10) and gate.overload.max_queued_tokens is None


def test_a_flood_does_not_get_another_tenant_refused() -> None:
    gate = Gate(max_queued_tokens=1000)
    gate.take(1000, b"heavy")
    gate.refused(1, b"heavy")
    gate.take(499, b"light")
    gate.take(400, b"light")
    gate.refused(1, b"light")


def test_shares_follow_the_weights() -> None:
    gate = Gate(max_queued_tokens=1000)
    gate.take(1000, b"heavy")
    gate.take(740, b"light", weight=3.0)
    gate.take(20, b"light", weight=3.0)
    gate.refused(1, b"light", weight=3.0)


def test_a_tenant_beyond_its_share_waits_at_its_share_of_the_speed() -> None:
    gate = Gate(max_queued_tokens=1000)
    gate.take(1000, b"heavy")
    gate.take(100, b"light")
    assert gate.refused(100, b"heavy") == pytest.approx((1000 + 100 - 500) / (TOKENS_PER_S / 2))


def test_refusals_are_counted_by_the_bound_that_was_reached() -> None:
    gate = Gate(max_queued_tokens=10, max_live_requests=2)
    first = gate.take(10)
    gate.refused(1)
    gate.overload.prefilled(first)
    gate.take(1)
    gate.refused(1)
    assert gate.counters.refused[Refusal.QUEUED_TOKENS] == 1
    assert gate.counters.refused[Refusal.LIVE_REQUESTS] == 1
    assert gate.counters.overloaded == 2


def test_what_is_over_leaves_nothing_behind() -> None:
    gate = Gate(max_queued_tokens=1000, max_live_requests=2)
    for generation in [gate.take(700, b"a"), gate.take(200, b"b")]:
        gate.overload.prefilled(generation)
        gate.overload.leave(generation)
        gate.overload.leave(generation)
    assert gate.overload.num_queued_tokens == 0
    assert gate.take(1000, b"a") and gate.take(0, b"b")


@pytest.mark.parametrize("bad", [{"max_queued_tokens": 0}, {"max_backlog_s": 0.0}])
def test_a_bound_of_nothing_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="must be positive"):
        RouterConfig(**bad)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 50), st.booleans())))
def test_shares_are_exact_over_any_history(steps: list[tuple[bytes, int, bool]]) -> None:
    shares, held = Shares(), list[tuple[bytes, int]]()
    for tenant, amount, takes in steps:
        if takes or not held:
            shares.add(tenant, 1.0, amount)
            held.append((tenant, amount))
        else:
            shares.remove(*held.pop(amount % len(held)))
        shares.check_integrity()
        assert shares.of(tenant) == sum(each for name, each in held if name == tenant)
    assert shares.total == sum(each for _, each in held)


# At the router


async def test_a_router_counts_tokens_until_the_first_one_comes_back(
    make_replica: Make, make_router: Make, make_request: Any, eventually: Make
) -> None:
    replica = await make_replica(automatic=False)
    router = await make_router([replica], max_queued_tokens=20)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(router.open(make_request(range(20))))
        assert router.status().num_queued_tokens == 20
        with pytest.raises(Overloaded, match="20 prompt tokens"):
            await stack.enter_async_context(router.open(make_request(range(4))))
        await eventually(lambda: len(replica.submits) == 1)
        replica.step()
        await eventually(lambda: router.status().num_queued_tokens == 0)
    assert router.counters.refused[Refusal.QUEUED_TOKENS] == 1


async def test_whoever_leaves_the_waiting_room_frees_its_tokens(make_router: Make, make_request: Any) -> None:
    router = await make_router(admission_timeout_s=0.01, max_queued_tokens=20)
    for _ in range(2):
        with pytest.raises(Exception, match="no replica became ready"):
            async with router.open(make_request(range(20))):
                pass
    assert router.status().num_queued_tokens == 0


async def test_cached_tokens_do_not_fill_the_queue(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_replica()])
    prompt = range(40)
    for _ in range(2):
        async with router.open(make_request(prompt, max_tokens=2)) as generation:
            num_queued = router.status().num_queued_tokens
            async for _ in generation:
                pass
    assert num_queued == 4  # of the last block one token at least is computed


async def test_the_tenant_and_its_weight_reach_the_replica(
    make_replica: Make, make_router: Make, make_request: Any
) -> None:
    replica = await make_replica()
    router = await make_router([replica])
    async with router.open(make_request(range(9), tenant=b"who", weight=2.5)) as generation:
        async for _ in generation:
            pass
    assert (replica.submits[0].tenant, replica.submits[0].weight) == (b"who", 2.5)
