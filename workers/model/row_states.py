"""What lasts of the rows of a replica from step to step, on the host: block tables, wishes, prompts to score.

Kept by each runner; plans only say what changed. Knows nothing of weights or devices.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from workers.model.sampling.prompt_scores import PromptScores
from workers.model.step_batch import BlockTables
from workers.step_plan import RowStart, StepPlan


class RowSampler(Protocol):
    """Knows what rows wish between their start and their end."""

    def start(self, start: RowStart) -> None: ...
    def end(self, row: int) -> None: ...


S = TypeVar("S", bound=RowSampler)


class RowStates(Generic[S]):
    """`draws`: whether this rank draws tokens, so that its sampler must know what the rows want."""

    def __init__(self, tables: BlockTables, sampler: S, draws: bool) -> None:
        self.tables = tables
        self.sampler = sampler
        self.scores = PromptScores()
        self._draws = draws

    def apply(self, plan: StepPlan) -> None:
        """All but the plan's copies, which are the device's."""
        for row in plan.ends:
            self.sampler.end(row)
            self.scores.end(row)
            self.tables.clear(row)
        for start in plan.starts:
            self.tables.clear(start.row)
            self.scores.start(start)
            if self._draws:
                self.sampler.start(start)
        for row, new_blocks in plan.grown:
            self.tables.append(row, new_blocks)
