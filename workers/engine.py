"""One replica's engine without sockets, threads or Ray: requests in, one `StepReport` per forward pass out.

Driven by `step_loop.py` behind a server and directly by the offline `LLM`. Owns the scheduler and the runner; used
by one thread at a time.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from protocol.block_hash import BlockHasher
from protocol.events import KvEvent
from protocol.messages import Load, SequenceOutput, Submit
from workers.runner import PendingStep, Runner, RunnerFacts
from workers.scheduling.request import Request
from workers.scheduling.scheduler import Scheduler, SchedulerConfig
from workers.scheduling.step_outputs import StepOutputs
from workers.speed_meter import SpeedMeter
from workers.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, in the form of a `StepFrame`. Outputs of a request come in the order of its tokens."""

    step: int
    outputs: Sequence[SequenceOutput]
    events: tuple[KvEvent, ...]
    load: Load
    rows: Sequence[int] = ()  # of announced sequences
    tokens: Sequence[int] = ()  # one for each of them


@dataclass(frozen=True, slots=True)
class _Flight:
    plan: StepPlan
    launched_s: float
    pending: PendingStep


class Engine:
    """Errors of `submit` are the request's; an exception from `step` is the engine's end."""

    def __init__(
        self,
        runner: Runner,
        config: SchedulerConfig,
        hasher: BlockHasher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._scheduler = Scheduler(config, runner.facts, hasher)
        self._speed = SpeedMeter()
        self._clock = clock
        self._deadlines: list[tuple[float, str]] = []
        self._flights: deque[_Flight] = deque()  # launched, the oldest first
        self._collected_s = 0.0  # when the last step had run
        self._step = 0

    @property
    def facts(self) -> RunnerFacts:
        return self._runner.facts

    @property
    def num_steps(self) -> int:
        return self._step

    @property
    def has_work(self) -> bool:
        return bool(self._flights) or self._scheduler.has_work()

    def submit(self, submit: Submit) -> None:
        """Queue a request. Raises a TrunklineError when it can never run; then nothing was kept."""
        request = Request.from_submit(submit)
        now_s = self._clock()
        self._scheduler.add(request, now_s)
        if submit.deadline_s is not None:
            heapq.heappush(self._deadlines, (now_s + submit.deadline_s, submit.request_id))

    def cancel(self, request_id: str, index: int | None = None) -> list[SequenceOutput]:
        """Free all that the request, or one sequence of it, holds; what ended by it is returned, not reported.

        A request that has ended, or was never here, is no error.
        """
        return self._scheduler.abort(request_id, index)

    def touch(self, digests: bytes) -> None:
        self._scheduler.touch(digests)

    def step(self) -> StepReport:
        """Keep the device busy, then report what its oldest step brought."""
        expired = self._expire()
        self._launch()
        step = self._collect() if self._flights else StepOutputs()
        return StepReport(
            self._step,
            expired + step.outputs,
            self._scheduler.take_events(),
            self.load(),
            step.rows,
            step.tokens,
        )

    def _launch(self) -> None:
        """Plan and launch as many steps as the device takes: where it takes two, one is planned while one runs."""
        while len(self._flights) < self._runner.facts.max_in_flight:
            now_s = self._clock()
            plan = self._scheduler.schedule(now_s)
            if plan is None:
                return
            self._flights.append(_Flight(plan, self._clock(), self._runner.launch(plan)))

    def _collect(self) -> StepOutputs:
        flight = self._flights.popleft()
        sampled = flight.pending.wait()
        now_s = self._clock()
        self._speed.observe(flight.plan, now_s - max(flight.launched_s, self._collected_s), now_s)
        self._collected_s = now_s
        fit = self._speed.prefill
        if fit.s_per_token:
            self._scheduler.prefill_s_per_token = fit.s_per_token
            self._scheduler.prefill_s_per_pair = fit.s_per_pair
        self._step += 1
        return self._scheduler.complete(sampled)

    def load(self) -> Load:
        return replace(
            self._scheduler.load(),
            prefill_s_per_token=self._speed.prefill_s_per_token,
            decode_step_s=self._speed.decode_step_s,
            speeds=self._speed.speeds,
            prefill_utilization=self._speed.utilization.at(self._collected_s),
        )

    def idle_report(self) -> StepReport:
        """Events and load between steps: what a reset or a cancellation changed."""
        return StepReport(self._step, (), self._scheduler.take_events(), self.load())

    def reset_prefix_cache(self) -> int:
        """Forget every cached block. Returns how many blocks are in use; above 0 nothing was done."""
        return self._scheduler.reset_prefix_cache()

    def snapshot(self) -> bytes:
        """Every digest that can be hit now, joined."""
        return self._scheduler.snapshot()

    def close(self) -> None:
        self._runner.close()

    def _expire(self) -> list[SequenceOutput]:
        """Abort the requests whose deadline has passed."""
        outputs: list[SequenceOutput] = []
        now_s = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id = heapq.heappop(self._deadlines)
            outputs += self._scheduler.abort(request_id)
        return outputs
