"""Runs another runner's steps on a thread of its own, so that the host plans step N+1 while N runs.

For devices whose `launch` computes there and then, as a CPU's does. A GPU's runner needs none: its stream is this
thread.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from workers.runner import Runner, RunnerFacts
from workers.step_plan import SampledTokens, StepPlan


class BackgroundRunner:
    """Owns the other runner from here on."""

    def __init__(self, own: Runner) -> None:
        self._own = own
        self._facts = replace(own.facts, max_in_flight=2)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device-steps")

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    def launch(self, plan: StepPlan) -> BackgroundStep:
        return BackgroundStep(self._thread.submit(lambda: self._own.launch(plan).wait()))

    def close(self) -> None:
        """Ends after the steps that were launched."""
        self._thread.shutdown()
        self._own.close()


class BackgroundStep:
    def __init__(self, future: Future[SampledTokens]) -> None:
        self._future = future

    def wait(self) -> SampledTokens:
        return self._future.result()
