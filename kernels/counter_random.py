"""Counter-based randomness: one uniform number per (seed, position), whatever else is in the batch.

    uniform = splitmix64(splitmix64(seed) + position) / 2^64, to 48 bits

torch has no unsigned 64-bit arithmetic, but int64 products and sums wrap alike; only shifts need a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 48  # every value is exact in float64 and below 1 after rounding


def uniform(
    seeds: Tensor,  # [rows] int64
    positions: Tensor,  # [rows] int64
) -> Tensor:  # [rows] float64 in [0, 1)
    return uniform_of_mixed(mix(seeds), positions)


def mix(
    seeds: Tensor,  # [rows] int64
) -> Tensor:  # [rows] int64
    """The part of the work that a row does not have to repeat for each of its tokens."""
    return _splitmix64(seeds)


def uniform_of_mixed(
    mixed_seeds: Tensor,  # [rows] int64, of `mix`
    positions: Tensor,  # [rows] int64
) -> Tensor:  # [rows] float64 in [0, 1)
    bits = _splitmix64(mixed_seeds + positions)
    return _shift_right(bits, 64 - _BITS).to(torch.float64) * 2.0**-_BITS


def _splitmix64(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical, where `>>` on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
