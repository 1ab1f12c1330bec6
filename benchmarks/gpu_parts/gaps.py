"""How long a device waits between two steps: a runner that notes on the device's own queue when steps begin and end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from workers.runner import PendingStep, RunnerFacts
from workers.step_plan import StepPlan


@dataclass
class GapRunner:
    """Over a `CudaRunner`, which it does not own."""

    runner: Any
    _begins: list[torch.cuda.Event] = field(default_factory=list)
    _ends: list[torch.cuda.Event] = field(default_factory=list)

    @property
    def facts(self) -> RunnerFacts:
        facts: RunnerFacts = self.runner.facts
        return facts

    def launch(self, plan: StepPlan) -> PendingStep:
        self._note(self._begins)
        pending: PendingStep = self.runner.launch(plan)
        self._note(self._ends)
        return pending

    def close(self) -> None:
        """Nothing is its own."""

    def gaps_s(self, steps: int) -> list[float]:
        """Between that many of the last steps, but for those that ended when the load was cancelled."""
        torch.cuda.synchronize()
        pairs = list(zip(self._ends[:-1], self._begins[1:], strict=True))[-steps - 4 : -4]
        return [end.elapsed_time(begin) / 1e3 for end, begin in pairs]

    def _note(self, events: list[torch.cuda.Event]) -> None:
        with self.runner._device.active():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        events.append(event)
