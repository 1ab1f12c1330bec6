"""A step's plan while it is being made, and whose tokens its execution will bring.

Filled by `scheduler.py` (decodes) and `prefill.py`, kept until the step is completed.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

from protocol.tokens import pack_tokens
from workers.scheduling.sequence import Sequence
from workers.step_plan import Chunk, RowStart, StepPlan


@dataclass(slots=True)
class PlanDraft:
    starts: list[RowStart] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    grown: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    decode_rows: list[int] = field(default_factory=list)
    decode_starts: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    drawing: list[Sequence] = field(default_factory=list)  # one per row that draws, in order
    prefilling: list[Sequence] = field(default_factory=list)  # one per chunk
    prefilled: list[Sequence] = field(default_factory=list)  # their last chunk is in it
    lost: set[Sequence] = field(
        default_factory=set
    )  # ended or preempted since: what it draws for them is nobody's

    @property
    def is_empty(self) -> bool:
        return not (self.decode_rows or self.chunks)

    def advances(self, sequence: Sequence) -> bool:
        """It brings the sequence to a point where it is as long as its KV."""
        return sequence not in self.lost and (sequence in self.drawing or sequence in self.prefilled)

    def plain(
        self, token_ids: abc.Sequence[int], special: list[int]
    ) -> tuple[abc.Sequence[int], abc.Sequence[int]]:
        """The rows that decode and their tokens, but for those at `special` places, which are in order."""
        num_decodes = len(self.decode_rows)
        if not special or special[0] >= num_decodes:
            return self.decode_rows, token_ids[:num_decodes]
        left = set(special)
        kept = [place for place in range(num_decodes) if place not in left]
        return [self.decode_rows[place] for place in kept], [token_ids[place] for place in kept]

    def plan(self, step: int, ends: tuple[int, ...]) -> StepPlan:
        return StepPlan(
            step,
            ends,
            tuple(self.starts),
            tuple(self.copies),
            tuple(self.grown),
            pack_tokens(self.decode_rows),
            pack_tokens(self.decode_starts),
            tuple(self.chunks),
        )
