"""Penalties on tokens that have occurred, in place.

    repetition   x -> x / s where x > 0, else x · s             s: the row's penalty where it occurred, else 1
    frequency    x -> x - frequency · (how often it was generated)
    presence     x -> x - presence · (was it generated)

Only sums, products and quotients of single numbers: where a row lies in a batch cannot change a bit.
"""

from __future__ import annotations

from torch import Tensor


def penalize_repetition(
    logits: Tensor,  # [rows, vocabulary] fp32, written
    scales: Tensor,  # [rows, vocabulary] fp32, over 0
) -> None:
    """One part is 0 wherever the other is not: that avoids a choice, which takes ten times as long on a CPU."""
    lowered = logits.clamp_min(0.0).div_(scales)
    logits.clamp_max_(0.0).mul_(scales).add_(lowered)


def penalize_counts(
    logits: Tensor,  # [rows, vocabulary] fp32, written
    counts: Tensor,  # [rows, vocabulary] fp32, consumed
    frequency: Tensor,  # [rows, 1] fp32
    presence: Tensor,  # [rows, 1] fp32
) -> None:
    logits.sub_(counts * frequency)
    logits.sub_(counts.clamp_max_(1.0).mul_(presence))
