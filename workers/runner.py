"""What a device must do for the engine. `cpu_runner.py` implements it; a test's fake is a few lines.

A runner owns the weights, the pool's memory and the rows' lasting state. It knows blocks and rows, nothing of
requests, digests or routers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.step_plan import SampledTokens, StepPlan


@dataclass(frozen=True, slots=True)
class RunnerFacts:
    """What the engine must know of the model and the memory behind a runner."""

    num_blocks: int  # of the pool, block 0 (the null block) included
    block_size: int
    max_model_len: int  # tokens
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class Runner(Protocol):
    @property
    def facts(self) -> RunnerFacts: ...

    def execute(self, plan: StepPlan) -> SampledTokens:
        """Run one step on every rank. Called by one thread, one plan at a time."""
        ...

    def close(self) -> None:
        """Give back memory, processes and sockets. Nothing may be called after it."""
        ...
