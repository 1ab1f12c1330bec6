"""A step's plan while it is being made, and whose tokens its execution will bring.

Filled by `scheduler.py` (decodes) and `prefill.py`, kept until the step is completed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.scheduling.sequence import Sequence
from workers.step_plan import RowStart, RowStep, StepPlan


@dataclass(slots=True)
class PlanDraft:
    starts: list[RowStart] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    rows: list[RowStep] = field(default_factory=list)
    sampled: list[Sequence] = field(default_factory=list)  # one per row that samples, in order
    prefilled: list[Sequence] = field(default_factory=list)  # their last prefill chunk is in it

    def plan(self, step: int, ends: tuple[int, ...]) -> StepPlan:
        return StepPlan(step, ends, tuple(self.starts), tuple(self.copies), tuple(self.rows))
