"""How long a replica takes: prefill seconds, decode step seconds, and how each slows the other.

The default is about a dense model of 32 billion parameters on two H100. Asked by `replica.py`, by `exact.py` and by
policies that price their choice in seconds. Knows no requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from protocol.tokens import unpack_tokens
from workers.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """Of `u` uncached tokens behind `c` cached ones the prefill takes `prefill_s + A·u + B·u·(c + u/2)` seconds."""

    prefill_s: float = 0.015  # of every prefill, beside its tokens
    token_s: float = 1 / 16_000  # A
    token_pair_s: float = 2.05e-5 / 16_000  # B: attention, a token to each before it
    prefill_slowdown: float = 0.004  # per running sequence
    decode_step_s: float = 0.020
    decode_sequence_s: float = 0.000_25  # more of it per running sequence
    mixed_step_s: float = 0.128  # instead of the first, while a prefill shares the steps
    max_running: int = 128
    decode_context_s: float = (
        0.0  # more of a step per token of context that its decodes read; exact replicas only
    )

    def slower(self, factor: float) -> ServiceModel:
        """All of it takes so many times as long."""
        return replace(
            self,
            prefill_s=self.prefill_s * factor,
            token_s=self.token_s * factor,
            token_pair_s=self.token_pair_s * factor,
            decode_step_s=self.decode_step_s * factor,
            decode_sequence_s=self.decode_sequence_s * factor,
            mixed_step_s=self.mixed_step_s * factor,
            decode_context_s=self.decode_context_s * factor,
        )

    def prefill_time_s(self, cached: int, uncached: int) -> float:
        """On an otherwise idle replica."""
        pairs = uncached * (cached + uncached / 2)
        return self.prefill_s + self.token_s * uncached + self.token_pair_s * pairs

    def tokens_left(self, num_tokens: int, remaining_s: float) -> int:
        """How many of a prompt's last tokens a prefill computes in its last `remaining_s` seconds, rounded up.

        The time between position p and the end is `A·(L-p) + B·(L²-p²)/2`: solved for p.
        """
        a, b = self.token_s, self.token_pair_s
        whole = a * num_tokens + b * num_tokens * num_tokens / 2
        rest = max(0.0, whole - remaining_s)
        position = rest / a if b == 0.0 else (math.sqrt(a * a + 2 * b * rest) - a) / b
        return min(num_tokens, math.ceil(num_tokens - position))

    def slowed(self, num_running: int) -> float:
        """By what decodes of so many sequences stretch a prefill."""
        return 1.0 + self.prefill_slowdown * num_running

    def step_s(self, num_running: int, prefilling: bool) -> float:
        """Of one decode step, which gives each running sequence one token."""
        step_s = self.mixed_step_s if prefilling else self.decode_step_s
        return step_s + self.decode_sequence_s * num_running

    def plan_s(self, plan: StepPlan) -> float:
        """Of a step of the product's scheduler. The chunks of a prefill together take what the prefill takes.

        A step with chunks costs a decode only what it slows them by: the weights are read once for both.
        """
        decode_s = 0.0
        if plan.num_decodes:
            decode_s = self.step_s(plan.num_decodes, prefilling=False)
            if self.decode_context_s:
                decode_s += self.decode_context_s * sum(unpack_tokens(plan.decode_starts))
        num_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        num_pairs = sum(chunk.num_tokens * (chunk.start + chunk.num_tokens / 2) for chunk in plan.chunks)
        prefill_s = self.prefill_s * len(plan.starts)
        prefill_s += self.token_s * num_tokens + self.token_pair_s * num_pairs
        return max(decode_s, prefill_s * self.slowed(plan.num_decodes))
