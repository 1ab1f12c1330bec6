"""What a device must do for the engine. `model/cpu_runner.py` and `model/cuda_runner.py` do it;
a test's fake is a few lines.

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
    max_in_flight: int = (
        1  # steps that may be launched before the oldest is collected; 2: host and device overlap
    )


class PendingStep(Protocol):
    """A step that has been launched."""

    def wait(self) -> SampledTokens:
        """What it drew, once it has run. Raises what the step raised."""
        ...


class Runner(Protocol):
    @property
    def facts(self) -> RunnerFacts: ...

    def launch(self, plan: StepPlan) -> PendingStep:
        """Run one step on every rank, after those launched before it. Called by one thread."""
        ...

    def close(self) -> None:
        """Give back memory, processes and sockets. Nothing may be called after it."""
        ...
