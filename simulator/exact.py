"""Exact replicas: the product's own scheduler, pool and prefix cache, step by step, on a device that only takes time.

A fidelity of `simulation.py`, slower than the fluid one by the steps: for a few replicas. Prefills share steps, wait
for the blocks that others compute, are preempted when memory runs out, and the replica learns its speeds from its own
steps. What a model would have said is made up, so generated blocks take memory but nobody comes back for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol.block_hash import join_digests
from protocol.errors import InvalidRequest
from protocol.events import Cleared, KvEvent, Stored
from protocol.messages import Load
from protocol.sampling import SamplingParams
from simulator.fleet import Fleet
from simulator.prompts import VOCABULARY, Prompts
from simulator.sequence import SimulatedSequence
from simulator.service_model import ServiceModel
from simulator.simulated_replica import NEVER, Happened
from simulator.simulation import Deployment, Order
from simulator.trace import BLOCK_TOKENS
from workers.kv.kv_cache import KvCache
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import Scheduler, SchedulerConfig
from workers.scheduling.step_outputs import StepOutputs
from workers.speed_meter import SpeedMeter
from workers.step_plan import SampledTokens, StepPlan

NULL_BLOCKS = 1  # of every pool
MOST_TOKENS = 2**31 - 1  # of a context: only the pool bounds it
SOME_TOKEN = 1


@dataclass(frozen=True, slots=True)
class ExactReplicas:
    """Makes them: `Deployment.make_replicas`."""

    block_size: int = 64
    trace_block_tokens: int = BLOCK_TOKENS
    max_num_batched_tokens: int = SchedulerConfig().max_num_batched_tokens

    def __call__(
        self, deployment: Deployment, fleet: Fleet, order: Order, shared: bool
    ) -> Sequence[ExactReplica]:
        if shared:
            raise InvalidRequest("exact replicas cannot share one cache: take --fidelity fluid for an oracle")
        prompts = Prompts(self.trace_block_tokens, self.block_size)
        num_blocks = deployment.cache_blocks * self.trace_block_tokens // self.block_size
        facts = RunnerFacts(num_blocks + NULL_BLOCKS, self.block_size, MOST_TOKENS, VOCABULARY, ())
        config = SchedulerConfig(deployment.model.max_running, self.max_num_batched_tokens)
        return [
            ExactReplica(
                number,
                deployment.model,
                Scheduler(config, facts, prompts.hasher, order.line()),
                prompts,
                fleet,
            )
            for number in range(deployment.num_replicas)
        ]


class ExactReplica:
    """`load` is what its last step reported."""

    __slots__ = (
        "_fleet",
        "_flight",
        "_model",
        "_number",
        "_scheduler",
        "_sequences",
        "_speed",
        "_step_s",
        "busy_s",
        "cache",
        "load",
        "next_event_s",
        "prompts",
    )

    def __init__(
        self, number: int, model: ServiceModel, scheduler: Scheduler, prompts: Prompts, fleet: Fleet
    ) -> None:
        self.prompts = prompts
        self.cache = ExactCache(scheduler.kv, prompts.trace_block_tokens)
        self.busy_s = 0.0  # steps with some prefill in them
        self.next_event_s = NEVER
        self.load: Load = scheduler.load()
        self._number = number
        self._model = model
        self._scheduler = scheduler
        self._fleet = fleet
        self._speed = SpeedMeter()
        self._sequences: dict[str, SimulatedSequence] = {}
        self._flight: StepPlan | None = None
        self._step_s = 0.0  # of the step in flight

    def slow_down(self, factor: float) -> None:
        """From the next step on."""
        self._model = self._model.slower(factor)

    def add(self, sequence: SimulatedSequence, now_s: float) -> None:
        """Raises ContextLengthExceeded if the pool could not hold it alone."""
        request, prompt = sequence.request, self.prompts.of(sequence.request)
        sampling = SamplingParams(max_tokens=request.num_output_tokens, ignore_eos=True)
        name = str(request.index)
        submitted = replace(  # as the orders see it
            sequence.live.request,
            request_id=name,
            prompt=prompt.tokens,
            sampling=sampling,
            digests=join_digests(prompt.digests),
        )
        self._scheduler.add(submitted, now_s)
        self._sequences[name] = sequence
        if self._flight is None:
            self._launch(now_s)

    def handle(self, now_s: float) -> Happened:
        plan = self._flight
        assert plan is not None, "only a step that runs can end"
        self._measure(plan, now_s)
        step = self._scheduler.complete(SampledTokens([SOME_TOKEN] * plan.num_drawn))
        happened = self._outcome(step, now_s)
        self._report(happened.events, now_s)
        self._launch(now_s)
        return happened

    def _launch(self, now_s: float) -> None:
        self._flight = plan = self._scheduler.schedule(now_s)
        self.next_event_s = NEVER
        if plan is not None:
            self._step_s = self._model.plan_s(plan)
            self.next_event_s = now_s + self._step_s

    def _measure(self, plan: StepPlan, now_s: float) -> None:
        """As the engine does."""
        self.busy_s += self._step_s if plan.chunks else 0.0
        self._speed.observe(plan, self._step_s, now_s)
        fit = self._speed.prefill
        if fit.s_per_token:
            self._scheduler.prefill_s_per_token = fit.s_per_token
            self._scheduler.prefill_s_per_pair = fit.s_per_pair

    def _report(self, events: Sequence[KvEvent], now_s: float) -> None:
        """As after a step of the engine. Routers that know the trace's blocks alone hear of those."""
        speed = self._speed
        utilization = speed.utilization.at(now_s)
        self.load = replace(self._scheduler.load(), speeds=speed.speeds, prefill_utilization=utilization)
        cached = self._fleet.cached
        for event in events:
            assert not isinstance(event, Cleared), "nobody resets a simulated cache"
            change = cached.add if isinstance(event, Stored) else cached.discard
            for block in self.prompts.trace_blocks(event.digests):
                change(block, self._number)

    def _outcome(self, step: StepOutputs, now_s: float) -> Happened:
        prefilled, ended = [], []
        for output in step.outputs:
            sequence = self._sequences[output.request_id]
            if sequence.ttft_s is None:  # else it had been preempted
                sequence.ttft_s = now_s - sequence.request.arrival_s
                sequence.cached_tokens = output.num_cached_tokens
                prefilled.append(sequence)
            if output.finish_reason is not None:
                ended.append(self._sequences.pop(output.request_id))
        return Happened(prefilled, ended, self._scheduler.take_events())

    def snapshot(self) -> bytes:
        """Every digest that can be hit now, joined."""
        return self._scheduler.snapshot()

    def check_integrity(self) -> None:
        self._scheduler.check_integrity()


class ExactCache:
    """A pool in blocks of the trace, as policies count it."""

    __slots__ = ("_kv", "_trace_block_tokens")

    def __init__(self, kv: KvCache, trace_block_tokens: int) -> None:
        self._kv = kv
        self._trace_block_tokens = trace_block_tokens

    @property
    def num_pinned(self) -> int:
        return self._kv.pool.num_used * self._kv.block_size // self._trace_block_tokens

    def __len__(self) -> int:
        num_blocks = self._kv.pool.num_used + self._kv.pool.num_cached
        return num_blocks * self._kv.block_size // self._trace_block_tokens

    def touch(self, blocks: Sequence[int]) -> None:
        """Nothing: the scheduler does it when the request arrives, which is now."""
