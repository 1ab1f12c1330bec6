"""Exact replicas: the product's scheduler in simulated time, by itself and against the fluid simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from protocol.errors import ContextLengthExceeded, InvalidRequest
from protocol.tokens import pack_tokens, unpack_tokens
from simulator.comparison import summary
from simulator.exact import ExactReplica, ExactReplicas
from simulator.exact_policy import EXACT_ORDERS, EXACT_POLICIES, ExactTrunkline
from simulator.fleet import Fleet
from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES
from simulator.prompts import Prompts
from simulator.sequence import SimulatedSequence
from simulator.service_model import ServiceModel
from simulator.simulation import Deployment, Simulation, Slowdown
from simulator.trace import BLOCK_TOKENS, TraceRequest
from workers.step_plan import Chunk, StepPlan

MODEL = ServiceModel()
EXACT = ExactReplicas()
NUM_BLOCKS = 200  # of the trace, at each replica


def ran(
    requests: Sequence[TraceRequest],
    policy: str = "trunkline",
    order: str = OUR_ORDER,
    replicas: int = 4,
    model: ServiceModel = MODEL,
    num_blocks: int = NUM_BLOCKS,
) -> Simulation:
    deployment = Deployment(replicas, num_blocks, model, make_replicas=EXACT)
    simulation = Simulation(requests, deployment, EXACT_POLICIES[policy], EXACT_ORDERS[order])
    simulation.run()
    return simulation


def exact(simulation: Simulation, number: int = 0) -> ExactReplica:
    replica = simulation.replicas[number]
    assert isinstance(replica, ExactReplica)
    return replica


def by_index(simulation: Simulation) -> dict[int, tuple[SimulatedSequence, float]]:
    """With the time of the last token."""
    return {sequence.request.index: (sequence, ended_s) for sequence, ended_s in simulation.ended}


def prompt(index: int, arrival_s: float, num_blocks: int, num_output_tokens: int = 1) -> TraceRequest:
    """Of blocks that nobody else has."""
    blocks = tuple(1000 * (index + 1) + depth for depth in range(num_blocks))
    return TraceRequest(index, arrival_s, num_blocks * BLOCK_TOKENS, num_output_tokens, blocks)


@pytest.mark.parametrize("policy", EXACT_POLICIES)
def test_every_request_ends_once_and_leaves_nothing_behind(
    busy_trace: list[TraceRequest], policy: str
) -> None:
    simulation = ran(busy_trace[:100], policy)
    assert sorted(by_index(simulation)) == list(range(100))
    fleet = simulation.fleet
    assert not any((*fleet.in_flight, *fleet.prefilling, *fleet.queued_tokens, *fleet.active_blocks))
    for number in range(4):
        replica = exact(simulation, number)
        replica.check_integrity()
        load = replica.load
        assert (load.waiting_prefill_tokens, load.num_running, replica.cache.num_pinned) == (0, 0, 0)


@pytest.mark.parametrize("order", EXACT_ORDERS)
def test_a_run_is_the_same_again(busy_trace: list[TraceRequest], order: str) -> None:
    one, other = (by_index(ran(busy_trace[:80], order=order)) for _ in range(2))
    assert [one[index][1] for index in sorted(one)] == [other[index][1] for index in sorted(other)]


def test_a_request_alone_takes_what_the_model_says() -> None:
    """However many steps its prefill takes."""
    sequence, ended_s = by_index(ran([prompt(0, 1.0, 10, num_output_tokens=11)], replicas=1))[0]
    prefill_s = MODEL.prefill_time_s(0, 10 * BLOCK_TOKENS)
    assert sequence.ttft_s == pytest.approx(prefill_s)
    assert ended_s == pytest.approx(1.0 + prefill_s + 10 * MODEL.step_s(1, prefilling=False))


def test_what_decodes_read_takes_time_if_the_model_says_so() -> None:
    def decode_s(model: ServiceModel) -> float:
        sequence, ended_s = by_index(ran([prompt(0, 0.0, 10, 3)], replicas=1, model=model))[0]
        assert sequence.ttft_s is not None
        return ended_s - sequence.ttft_s

    num_read = 2 * 10 * BLOCK_TOKENS + 1  # positions of the two tokens that are fed
    assert decode_s(ServiceModel(decode_context_s=1e-6)) - decode_s(MODEL) == pytest.approx(1e-6 * num_read)


def test_a_step_with_decodes_beside_a_tiny_prefill_takes_as_long_as_the_decodes() -> None:
    rows, chunk = pack_tokens(range(4)), Chunk(4, 0, pack_tokens([1] * 10), True)
    decodes = StepPlan(1, decode_rows=rows, decode_starts=rows)
    assert MODEL.plan_s(decodes) == MODEL.step_s(4, prefilling=False)
    assert MODEL.plan_s(replace(decodes, chunks=(chunk,))) == MODEL.plan_s(decodes)
    assert MODEL.plan_s(StepPlan(1, chunks=(chunk,))) < MODEL.plan_s(decodes)


def test_decodes_slow_a_prefill() -> None:
    """It begins when the step that ran at its arrival ends, and few tokens are left for a last step of its own."""
    requests = [prompt(0, 0.0, 1, num_output_tokens=400), prompt(1, 1.0, 40)]
    sequence, _ = by_index(ran(requests, replicas=1))[1]
    slowed_s = MODEL.prefill_time_s(0, 40 * BLOCK_TOKENS) * MODEL.slowed(1)
    assert sequence.ttft_s is not None
    assert slowed_s < sequence.ttft_s <= slowed_s + 2 * MODEL.step_s(1, prefilling=False)


def test_of_two_equal_prompts_at_once_one_is_computed() -> None:
    first = prompt(0, 0.0, 20)
    again = TraceRequest(1, 0.1, first.num_tokens, 1, first.blocks)
    sequence, _ = by_index(ran([first, again], replicas=1))[1]
    assert sequence.cached_tokens == first.num_tokens - 64  # at least one token is, and so one block


def test_memory_that_runs_out_preempts_and_all_end_none_the_less() -> None:
    requests = [prompt(index, 0.01 * index, 2, num_output_tokens=1200) for index in range(12)]
    simulation = ran(requests, replicas=1, num_blocks=30)
    assert exact(simulation).load.num_preemptions > 0
    assert all(ended_s > 20.0 for _, ended_s in by_index(simulation).values())
    assert len(by_index(simulation)) == len(requests)


def test_a_request_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded, match="the KV pool holds"):
        ran([prompt(0, 0.0, 12)], replicas=1, num_blocks=10)


def test_an_oracle_is_refused(busy_trace: list[TraceRequest]) -> None:
    deployment = Deployment(2, NUM_BLOCKS, make_replicas=EXACT)
    with pytest.raises(InvalidRequest, match="exact replicas cannot share one cache"):
        Simulation(busy_trace, deployment, POLICIES["oracle"], ORDERS[OUR_ORDER])


def test_replicas_learn_the_speeds_of_the_model(busy_trace: list[TraceRequest]) -> None:
    speeds = exact(ran(busy_trace)).load.speeds
    expected_s = MODEL.prefill_time_s(1024, 4096)
    assert speeds.seconds_to_prefill(4096, 1024) == pytest.approx(expected_s, rel=0.15)
    assert speeds.decode_s == pytest.approx(MODEL.step_s(1, prefilling=False), rel=0.15)


def test_our_policy_predicts_what_will_be_cached(sequential_trace: list[TraceRequest]) -> None:
    """Where nothing is evicted meanwhile, to the token."""
    simulation = ran(sequential_trace)
    policy = simulation._routers[0]
    assert isinstance(policy, ExactTrunkline)
    cached = {index: sequence.cached_tokens for index, (sequence, _) in by_index(simulation).items()}
    assert policy.predicted == cached and sum(cached.values()) > 0


def test_a_hot_prompt_that_comes_four_times_before_its_first_prefill_ends_is_computed_once() -> None:
    first = prompt(0, 0.0, 20)
    again = [replace(first, index=index, arrival_s=0.01 * index) for index in range(1, 4)]
    cached = {index: each.cached_tokens for index, (each, _) in by_index(ran([first, *again])).items()}
    assert cached == {0: 0} | dict.fromkeys((1, 2, 3), first.num_tokens - 64)


class Recording(ExactTrunkline):
    """Our policy, and where it sent each request."""

    def __init__(self, fleet: Fleet, chosen: list[int]) -> None:
        super().__init__(fleet)
        self._chosen = chosen

    def choose(self, request: TraceRequest) -> int:
        self._chosen.append(super().choose(request))
        return self._chosen[-1]


def test_priority_classes_count_in_the_choice() -> None:
    """By its length the first is ahead of the third, and shorter than the second; by its class it is overtaken."""
    later = (replace(prompt(index, 0.001 * index, 16 + 8 * index), priority=-1) for index in (1, 2))
    chosen: list[int] = []
    deployment = Deployment(2, NUM_BLOCKS, MODEL, make_replicas=EXACT)
    requests = [prompt(0, 0.0, 20), *later]
    Simulation(requests, deployment, lambda fleet: Recording(fleet, chosen), EXACT_ORDERS[OUR_ORDER]).run()
    first, second, third = chosen
    assert first != second == third


def test_other_policies_are_told_what_is_cached_in_blocks_of_the_trace(
    busy_trace: list[TraceRequest],
) -> None:
    simulation = ran(busy_trace, "least-tokens", num_blocks=60)
    for number in range(4):
        replica = exact(simulation, number)
        held = {block for block, mask in simulation.fleet.cached.masks.items() if mask >> number & 1}
        assert held == set(replica.prompts.trace_blocks(replica.snapshot())) != set()
        assert abs(len(replica.cache) - 60) <= 1  # full: some were evicted
    assert len(simulation.fleet.cached.masks) < len({block for each in busy_trace for block in each.blocks})


@pytest.mark.parametrize("policy", ["trunkline", "least-tokens", "preble"])
def test_exact_and_fluid_agree(busy_trace: list[TraceRequest], policy: str) -> None:
    """Hits within 3 % of the tokens; mean times to the first token within 25 %, to the last within 30 %."""
    order = ORDERS[OUR_ORDER]
    fluid = Simulation(busy_trace, Deployment(4, NUM_BLOCKS), POLICIES[policy], order)
    fluid.run()
    coarse, fine = (summary(each, policy, OUR_ORDER) for each in (fluid, ran(busy_trace, policy)))
    assert fine.hit_rate == pytest.approx(coarse.hit_rate, abs=0.03) and fine.hit_rate > 0.1
    assert fine.mean_ttft_s == pytest.approx(coarse.mean_ttft_s, rel=0.25)
    assert fine.mean_end_to_end_s == pytest.approx(coarse.mean_end_to_end_s, rel=0.3)


@pytest.mark.parametrize(("num_routers", "event_lag_s"), [(1, 0.5), (3, 0.0), (2, 0.1)])
def test_news_may_be_late_and_go_to_several_routers(
    busy_trace: list[TraceRequest], num_routers: int, event_lag_s: float
) -> None:
    deployment = Deployment(
        4, NUM_BLOCKS, make_replicas=EXACT, num_routers=num_routers, event_lag_s=event_lag_s
    )
    simulation = Simulation(
        busy_trace[:150], deployment, EXACT_POLICIES["trunkline"], EXACT_ORDERS[OUR_ORDER]
    )
    simulation.run()
    assert len(simulation.ended) == 150
    for router in simulation._routers:
        assert isinstance(router, ExactTrunkline)
        router.check_integrity({str(number): exact(simulation, number).snapshot() for number in range(4)})


def test_a_replica_three_times_slower_is_given_less(busy_trace: list[TraceRequest]) -> None:
    deployment = Deployment(2, NUM_BLOCKS, make_replicas=EXACT, slowdowns=(Slowdown(1, 3.0),))
    simulation = Simulation(
        busy_trace[:150], deployment, EXACT_POLICIES["trunkline"], EXACT_ORDERS[OUR_ORDER]
    )
    simulation.run()
    fast, slow = (exact(simulation, number) for number in range(2))
    assert slow.load.speeds.prefill_s_per_token > 2 * fast.load.speeds.prefill_s_per_token
    assert slow.load.cache.queried < 0.6 * fast.load.cache.queried


def test_tokens_stand_for_blocks_whatever_the_size_of_the_replicas_blocks() -> None:
    one = TraceRequest(0, 0.0, 1000, 1, (2**63 + 5, 9))
    longer, other = (
        TraceRequest(index, 0.0, 1024, 1, blocks) for index, blocks in ((1, one.blocks), (2, (4, 9)))
    )
    for size in (16, 64, 512):
        digests = [Prompts(BLOCK_TOKENS, size).of(each).digests for each in (one, longer, other)]
        assert [len(each) for each in digests] == [1000 // size, 1024 // size, 1024 // size]
        assert digests[1][: len(digests[0])] == digests[0] and not set(digests[1]) & set(digests[2])


def test_prompts_are_as_long_as_the_trace_says() -> None:
    request = TraceRequest(0, 0.0, 1000, 1, (3, 9))
    assert len(unpack_tokens(Prompts(BLOCK_TOKENS, 64).of(request).tokens)) == 1000


@pytest.mark.parametrize("block_size", [0, -64, 60, 1024])
def test_block_sizes_must_divide_the_blocks_of_the_trace(block_size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"--block-size must divide .* 512 tokens, not {block_size}"):
        Prompts(BLOCK_TOKENS, block_size)
