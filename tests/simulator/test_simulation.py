"""The clock, the replicas and the orders: what goes in comes out once, in time, and the same again."""

from __future__ import annotations

import pytest

from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES
from simulator.service_model import ServiceModel
from simulator.simulation import Deployment, Simulation
from simulator.trace import BLOCK_TOKENS, TraceRequest

MODEL = ServiceModel()


def ran(
    requests: list[TraceRequest], order: str = OUR_ORDER, policy: str = "least-tokens", replicas: int = 4
) -> Simulation:
    simulation = Simulation(requests, Deployment(replicas, 60), POLICIES[policy], ORDERS[order])
    simulation.run()
    return simulation


def ttfts_s(simulation: Simulation) -> dict[int, float]:
    found = {}
    for sequence, _ in simulation.ended:
        assert sequence.ttft_s is not None
        found[sequence.request.index] = sequence.ttft_s
    return found


def prompt(index: int, arrival_s: float, num_blocks: int, num_output_tokens: int = 1) -> TraceRequest:
    """Of blocks that nobody else has."""
    blocks = tuple(1000 * (index + 1) + depth for depth in range(num_blocks))
    return TraceRequest(index, arrival_s, num_blocks * BLOCK_TOKENS, num_output_tokens, blocks)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_and_busy_time_is_the_sum_of_prefills(
    busy_trace: list[TraceRequest], policy: str, order: str
) -> None:
    simulation = ran(busy_trace, order, policy)
    ended = [sequence for sequence, _ in simulation.ended]
    assert sorted(sequence.request.index for sequence in ended) == list(range(len(busy_trace)))
    busy_s = sum(replica.busy_s for replica in simulation.replicas)
    assert busy_s == pytest.approx(sum(sequence.prefill_s for sequence in ended))
    assert all(replica.backlog_tokens == 0 and replica.num_decoding == 0 for replica in simulation.replicas)


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_left_in_use_or_in_flight(busy_trace: list[TraceRequest], policy: str) -> None:
    simulation = ran(busy_trace, policy=policy)
    fleet = simulation.fleet
    assert not any((*fleet.in_flight, *fleet.prefilling, *fleet.queued_tokens, *fleet.active_blocks))
    for replica in simulation.replicas:
        replica.cache.check_integrity()
        assert replica.cache.num_pinned == 0


def test_time_never_runs_backwards_and_no_prefill_takes_less_than_it_must(
    busy_trace: list[TraceRequest],
) -> None:
    simulation = ran(busy_trace)
    ends_s = [ended_s for _, ended_s in simulation.ended]
    assert ends_s == sorted(ends_s)
    for sequence, ended_s in simulation.ended:
        request = sequence.request
        alone_s = MODEL.prefill_time_s(sequence.cached_tokens, request.num_tokens - sequence.cached_tokens)
        decode_s = (request.num_output_tokens - 1) * MODEL.step_s(1, prefilling=False)
        assert sequence.ttft_s is not None and sequence.ttft_s >= alone_s - 1e-6
        assert ended_s >= request.arrival_s + sequence.ttft_s + decode_s - 1e-6


def test_a_request_alone_takes_what_the_model_says() -> None:
    simulation = ran([prompt(0, 1.0, 10, num_output_tokens=11)], replicas=1)
    sequence, ended_s = simulation.ended[0]
    prefill_s = MODEL.prefill_time_s(0, 10 * BLOCK_TOKENS)
    assert sequence.ttft_s == pytest.approx(prefill_s)
    assert ended_s == pytest.approx(1.0 + prefill_s + 10 * MODEL.step_s(1, prefilling=False))


def test_decodes_and_prefills_slow_each_other() -> None:
    requests = [prompt(0, 0.0, 1, num_output_tokens=1000), prompt(1, 1.0, 40)]
    simulation = ran(requests, replicas=1)
    alone_s = MODEL.prefill_time_s(0, 40 * BLOCK_TOKENS)
    slowed_s = alone_s * MODEL.slowed(1)
    assert ttfts_s(simulation)[1] == pytest.approx(slowed_s)
    steps_meanwhile = slowed_s / MODEL.step_s(1, prefilling=True)
    expected_s = (
        ttfts_s(simulation)[0] + slowed_s + (999 - steps_meanwhile) * MODEL.step_s(1, prefilling=False)
    )
    ended_s = {sequence.request.index: at_s for sequence, at_s in simulation.ended}
    assert ended_s[0] == pytest.approx(expected_s)


def test_blocks_are_seen_when_the_prefill_ends_and_not_before() -> None:
    first = prompt(0, 0.0, 20, num_output_tokens=500)
    during = TraceRequest(1, 0.1, first.num_tokens, 1, first.blocks)
    behind = TraceRequest(2, 5.0, first.num_tokens, 1, first.blocks)
    simulation = Simulation(
        [first, during, behind], Deployment(2, 60), POLICIES["round-robin"], ORDERS["first-come"]
    )
    simulation.run()
    cached = {sequence.request.index: sequence.cached_tokens for sequence, _ in simulation.ended}
    assert cached == {0: 0, 1: 0, 2: first.num_tokens - 1}


@pytest.mark.parametrize(
    ("order", "overtakes"), [("first-come", False), ("response-ratio-whole", True), (OUR_ORDER, True)]
)
def test_short_prompts_overtake_long_ones_that_wait_under_the_response_ratio(
    order: str, overtakes: bool
) -> None:
    """The first one runs when the others arrive."""
    simulation = ran([prompt(0, 0.0, 40), prompt(1, 0.1, 200), prompt(2, 0.2, 2)], order, replicas=1)
    ttft_s = ttfts_s(simulation)
    assert (0.2 + ttft_s[2] < 0.1 + ttft_s[1]) is overtakes


def test_with_slices_a_short_prompt_overtakes_even_the_one_that_runs() -> None:
    requests = [prompt(0, 0.0, 200), prompt(1, 1.0, 2)]
    assert ttfts_s(ran(requests, "response-ratio-whole", replicas=1))[1] > 5.0
    assert ttfts_s(ran(requests, OUR_ORDER, replicas=1))[1] < 0.5


def test_at_most_two_prefills_are_begun() -> None:
    """Two long ones are begun, so the short one waits for the end of the shorter of them."""
    requests = [prompt(0, 0.0, 200), prompt(1, 1.0, 40), prompt(2, 1.3, 1)]
    ttft_s = ttfts_s(ran(requests, replicas=1))
    assert 1.3 + ttft_s[2] > 1.0 + ttft_s[1]


def test_the_longest_match_goes_first_under_its_order() -> None:
    warm = prompt(0, 0.0, 20)
    again = TraceRequest(3, 10.2, warm.num_tokens, 1, warm.blocks)
    requests = [warm, prompt(1, 10.0, 40), prompt(2, 10.1, 2), again]
    ttft_s = ttfts_s(ran(requests, "longest-match", replicas=1))
    assert 10.2 + ttft_s[3] < 10.1 + ttft_s[2]


def test_no_more_run_than_the_model_lets() -> None:
    model = ServiceModel(max_running=2)
    requests = [prompt(index, 0.0, 1, num_output_tokens=1000) for index in range(3)]
    simulation = Simulation(requests, Deployment(1, 60, model), POLICIES["random"], ORDERS["first-come"])
    simulation.run()
    assert ttfts_s(simulation)[1] < 1.0 and ttfts_s(simulation)[2] > 20.0


@pytest.mark.parametrize("policy", ["trunkline", "random", "sglang", "preble"])
def test_a_run_is_the_same_again(busy_trace: list[TraceRequest], policy: str) -> None:
    assert ttfts_s(ran(busy_trace, policy=policy)) == ttfts_s(ran(busy_trace, policy=policy))


@pytest.mark.parametrize("left_s", [0.0, 0.1, 1.0, 3.0])
def test_tokens_left_take_the_time_that_is_left(left_s: float) -> None:
    num_left = MODEL.tokens_left(50_000, left_s)
    seconds = MODEL.prefill_time_s(50_000 - num_left, num_left) - MODEL.prefill_s
    assert seconds == pytest.approx(left_s, abs=2e-4)
