"""The table of cosines and sines by which positions turn queries and keys. Made once, at a runner's start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.model.model_spec import LinearScaling, Llama3Scaling, RotarySpec


def rotary_table(
    spec: RotarySpec, head_dim: int, num_positions: int, dtype: torch.dtype
) -> (
    Tensor
):  # [num_positions, 2, 1, head_dim]: cosines, then sines with the minus of `kernels/rope_kv_write.py`
    angles = torch.outer(torch.arange(num_positions).float(), _frequencies(spec, head_dim))
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
    return table[:, :, None].to(dtype)


def _frequencies(spec: RotarySpec, head_dim: int) -> Tensor:  # [head_dim / 2], radians per position
    plain = 1.0 / spec.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    if isinstance(spec.scaling, LinearScaling):
        return plain / spec.scaling.factor
    if isinstance(spec.scaling, Llama3Scaling):
        return _llama3(plain, spec.scaling)
    return plain


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Blend by how often a frequency turns within the original context."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return plain * kept + plain / scaling.factor * (1.0 - kept)
