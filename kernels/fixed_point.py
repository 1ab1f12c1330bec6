"""Probabilities as whole multiples of 2^-50, kept in float64.

    fixed(p) = round(p · 2^50)

Such numbers add up exactly, so a sum is the same in whatever order it is taken: a row's cut and its draw cannot
depend on how many rows are in the batch. A token less likely than 2^-51 counts as impossible.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 256
_ONE = 2.0**50  # a row adds up to about this; float64 is exact to 2^53


def fixed(
    probabilities: Tensor,  # fp32 in [0, 1]
) -> Tensor:  # float64, whole numbers
    return probabilities.double().mul_(_ONE).round_()


def chunk_masses(
    probabilities: Tensor,  # [rows, vocabulary] fp32
) -> Tensor:  # [rows, chunks of the vocabulary] float64, whole numbers
    """Sums over CHUNK tokens each, the last one over the rest."""
    num_rows, size = probabilities.shape
    num_chunks, rest = divmod(size, CHUNK)
    sums = probabilities[:, : num_chunks * CHUNK].view(num_rows, num_chunks, CHUNK).sum(-1)
    if rest:
        sums = torch.cat([sums, probabilities[:, -rest:].sum(-1, keepdim=True)], 1)
    return fixed(sums)
