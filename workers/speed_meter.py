"""How fast this replica is, learnt from its own steps. Fed by the engine, read by every router through `Load`.

A step's seconds are attributed to its prefill tokens when it has any beyond the usual cost of its decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.step_plan import StepPlan

SMOOTHING = 0.1  # weight of the newest step
MIN_PREFILL_TOKENS = 16  # fewer say nothing about the speed of prefill


@dataclass(slots=True)
class SpeedMeter:
    """Exponential averages; 0 until measured."""

    prefill_s_per_token: float = 0.0
    decode_step_s: float = 0.0

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        num_decodes, num_prefill_tokens = plan.num_decodes, plan.num_prefill_tokens
        if num_prefill_tokens == 0:
            self.decode_step_s = _blend(self.decode_step_s, elapsed_s)
        elif num_prefill_tokens >= MIN_PREFILL_TOKENS:
            spent_s = max(elapsed_s - (self.decode_step_s if num_decodes else 0.0), 0.0)
            self.prefill_s_per_token = _blend(self.prefill_s_per_token, spent_s / num_prefill_tokens)


def _blend(average: float, newest: float) -> float:
    return newest if average == 0.0 else average + SMOOTHING * (newest - average)
