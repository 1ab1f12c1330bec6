"""The tables of cosines and sines by which positions turn queries and keys. Made once, at a runner's start."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.model.model_spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RotarySpec,
    YarnScaling,
)


class RotaryTables:
    """One per way in which a model's layers turn."""

    def __init__(
        self,
        specs: Sequence[RotarySpec],
        head_dim: int,
        num_positions: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """`num_positions` is the served context, by which some scalings decide."""
        self._specs = tuple(specs)
        self._tables = [rotary_table(spec, head_dim, num_positions, dtype).to(device) for spec in specs]

    def index(self, spec: RotarySpec) -> int:
        """Of its cosines and sines among what `at` returns."""
        return self._specs.index(spec)

    def at(
        self, positions: Tensor
    ) -> list[tuple[Tensor, ...]]:  # [tokens] -> (cos, sin), each [tokens, 1, dims]
        return [table[positions].unbind(1) for table in self._tables]


def rotary_table(
    spec: RotarySpec, head_dim: int, num_positions: int, dtype: torch.dtype
) -> Tensor:  # [num_positions, 2, 1, dims]: cosines, then sines with the minus of `kernels/rope_kv_write.py`
    frequencies = _frequencies(spec, spec.dims or head_dim, num_positions)
    angles = torch.outer(torch.arange(num_positions).float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
    if isinstance(spec.scaling, YarnScaling | LongScaling):
        table *= spec.scaling.attention_factor
    return table[:, :, None].to(dtype)


def _frequencies(
    spec: RotarySpec, dims: int, num_positions: int
) -> Tensor:  # [dims / 2], radians per position
    plain, scaling = _plain(spec.theta, dims), spec.scaling
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor
    if isinstance(scaling, DynamicScaling):
        return _plain(_dynamic_theta(spec.theta, scaling, dims, num_positions), dims)
    if isinstance(scaling, YarnScaling):
        return _yarn(plain, scaling, spec.theta)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(plain, scaling)
    if isinstance(scaling, LongScaling):
        is_long = num_positions > scaling.original_max_positions
        return plain / torch.tensor(scaling.long_factors if is_long else scaling.short_factors)
    return plain


def _plain(theta: float, dims: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dims, 2).float() / dims)


def _dynamic_theta(theta: float, scaling: DynamicScaling, dims: int, num_positions: int) -> float:
    """Such that the slowest frequency is divided as linear scaling to this context would, and the fastest is kept."""
    stretch = max(num_positions / scaling.original_max_positions, 1.0)
    growth = scaling.factor * stretch - (scaling.factor - 1.0)
    return float(theta * growth ** (dims / (dims - 2)))


def _yarn(plain: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """Blend by dimension, between those that make `beta_fast` and `beta_slow` turns within the original context."""
    dims = 2 * len(plain)

    def dimension(num_turns: float) -> float:
        wavelength = scaling.original_max_positions / (num_turns * 2 * math.pi)
        return dims * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    divided = ((torch.arange(dims // 2) - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return plain / scaling.factor * divided + plain * (1.0 - divided)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Blend by how often a frequency turns within the original context."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return plain * kept + plain / scaling.factor * (1.0 - kept)
