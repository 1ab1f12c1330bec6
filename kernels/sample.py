"""Draws a token of each row from its probabilities and one uniform number.

    draw(p, u) = the first token at which the sum of p over all tokens up to it passes u · (the sum of p)

Every row stands for itself, bit for bit: what rows are summed or drawn beside it changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.fixed_point import CHUNK, chunk_masses

_INNER_ONE = 2.0**44  # a chunk's probabilities relative to its largest: 256 of them add up exactly in float64
_BELOW_ONE = 1.0 - 2.0**-40


def draw(
    probabilities: Tensor,  # [rows, vocabulary] fp32, of any sum near 1 or below
    uniforms: Tensor,  # [rows] float64 in [0, 1)
) -> Tensor:  # [rows] int64
    """In two strides, over chunks and then within one: a running sum of the whole vocabulary takes seven times as long.

    A row of zeros or of NaN yields some token of the vocabulary.
    """
    size = probabilities.shape[-1]
    masses = chunk_masses(probabilities)
    sums = masses.cumsum(-1)  # [rows, chunks]
    target = uniforms[:, None] * sums[:, -1:]
    chunk = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
    mass = masses.gather(1, chunk)
    share = (target - sums.gather(1, chunk) + mass) / mass  # of the chunk's mass, in [0, 1)
    tokens = chunk * CHUNK + torch.arange(CHUNK)
    inner = probabilities.gather(1, tokens.clamp(max=size - 1))
    if size % CHUNK:
        inner.masked_fill_(tokens >= size, 0.0)
    inside = _within(inner.double(), share)
    return (chunk * CHUNK + inside).squeeze(-1).clamp_(max=size - 1)


def _within(
    inner: Tensor, share: Tensor
) -> Tensor:  # [rows, CHUNK] float64, [rows, 1] float64 -> [rows, 1] int64
    sums = (inner / inner.amax(-1, keepdim=True)).mul_(_INNER_ONE).round_().cumsum_(-1)
    total = sums[:, -1:]
    target = torch.minimum(
        share * total, total * _BELOW_ONE
    )  # rounding must not lead past the last possible token
    return torch.searchsorted(sums, target, right=True)
