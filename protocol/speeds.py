"""How fast a replica is, as it has learnt from its own steps, and how busy: what `Load` says, a router predicts with.

Formulas only, so that both sides mean the same: who measures is the engine, who decides is the router's policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Speeds:
    """Zeros: not measured yet."""

    prefill_s: float = 0.0  # of any prefill, however short
    prefill_s_per_token: float = 0.0  # of each token computed
    prefill_s_per_pair: float = 0.0  # of each token computed and each one before it: attention
    decode_s: float = 0.0  # of a step in which one sequence decodes
    decode_s_per_sequence: float = 0.0  # of each further sequence in it

    def seconds_to_prefill(self, num_uncached: int, num_cached: int) -> float:
        """A prompt whose first `num_cached` tokens are cached and `num_uncached` are computed."""
        num_pairs = num_uncached * (num_cached + num_uncached / 2)
        return self.prefill_s + self.prefill_s_per_token * num_uncached + self.prefill_s_per_pair * num_pairs

    @property
    def measured(self) -> bool:
        """Its prefill can be predicted: no part of it is negative, infinite or no number, and tokens cost time."""
        parts = (self.prefill_s, self.prefill_s_per_token, self.prefill_s_per_pair)
        decode = (self.decode_s, self.decode_s_per_sequence)
        sane = all(math.isfinite(part) and part >= 0.0 for part in (*parts, *decode))
        return sane and self.prefill_s_per_token > 0.0


UNMEASURED = Speeds()
UTILIZATION_WINDOW_S = 60.0


@dataclass(slots=True)
class PrefillRate:
    """Prefill seconds a second, over about the last `window_s`: those dispatched at a router, those spent at a replica.

    The time is told, by a monotonic clock.
    """

    window_s: float = UTILIZATION_WINDOW_S
    as_of_s: float = 0.0
    _fading_s: float = 0.0

    def add(self, prefill_s: float, now_s: float) -> None:
        self._fading_s = self.at(now_s) * self.window_s + prefill_s
        self.as_of_s = now_s

    def become(self, rate: float, now_s: float) -> float:
        """Replaced by somebody's word for it. Returns by how much it has grown."""
        growth = rate - self.at(now_s)
        self._fading_s, self.as_of_s = rate * self.window_s, now_s
        return growth

    def at(self, now_s: float) -> float:
        elapsed_s = max(0.0, now_s - self.as_of_s)
        return self._fading_s * math.exp(-elapsed_s / self.window_s) / self.window_s
