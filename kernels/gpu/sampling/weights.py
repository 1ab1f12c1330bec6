"""What a token weighs beside the most likely one of its row. Part of `cut.py` and `sample.py`.

    depth = (x - max x) / temperature          weight = exp(depth)          mass = floor(weight · 2^42)

Weights are probabilities but for the row's sum, which no cut and no draw needs. Masses are integers: a sum of them is
exact, and the same in whatever order programs add, so a row's tokens depend on nothing beside it. A token below 2^-42
of the most likely counts as impossible, and so does one that min-p cuts off: min-p is a bound on the weight itself.

A weight's bits, as an integer, are its key: keys are in the order of the weights, and a cut is a bound on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_VOCABULARY = 1 << 20  # whose masses add up in 62 bits

_ONE_MASS = tl.constexpr(float(1 << 42))
ONE_KEY = tl.constexpr(127 << 23)  # of the weight 1
LEAST_KEY = tl.constexpr((85 << 23) + 1)  # just above 2^-42: no token that is possible has less


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How each row wants its token drawn: columns on the device that outlive a step, read by every launch."""

    temperature: Tensor  # [rows] fp32, 0: the most likely token, and the other columns are not looked at
    min_p: Tensor  # [rows] fp32, 0: off
    top_k: Tensor  # [rows] int32, 0: off
    top_p: Tensor  # [rows] float64, 1: off
    seed: Tensor  # [rows] int64
    position: Tensor  # [rows] int32 or int64, of the token to draw

    @classmethod
    def empty(cls, num_rows: int, device: torch.device | str) -> SamplingRows:
        """All greedy."""
        zeros = torch.zeros(num_rows, dtype=torch.int64, device=device)
        return cls(
            temperature=zeros.float(),
            min_p=zeros.float(),
            top_k=zeros.int(),
            top_p=torch.ones(num_rows, dtype=torch.float64, device=device),
            seed=zeros.clone(),
            position=zeros.clone(),
        )

    def check(self, num_rows: int) -> None:
        for name, dtypes in _DTYPES.items():
            column = getattr(self, name)
            assert column.dtype in dtypes and column.is_contiguous(), f"{name} must be packed, of {dtypes}"
            assert len(column) >= num_rows, f"{name} has {len(column)} rows of {num_rows}"


_DTYPES = {
    "temperature": (torch.float32,),
    "min_p": (torch.float32,),
    "top_k": (torch.int32,),
    "top_p": (torch.float64,),
    "seed": (torch.int64,),
    "position": (torch.int32, torch.int64),
}


@triton.jit
def keys_at(ids, logits_ptr, vocab_size, best, temperature, min_p):  # (IDS) -> (IDS) int32
    """Of tokens of one row; 0 for one that cannot be drawn, and past the last."""
    logits = tl.load(logits_ptr + ids, ids < vocab_size, -float("inf")).to(tl.float32)
    depth = (logits - best) / temperature
    weights = tl.exp(depth)
    # NaN, in a row whose maximum is not finite, is not <= 0.
    possible = (depth <= 0.0) & (weights >= min_p)
    keys = tl.where(possible, weights, 0.0).to(tl.int32, bitcast=True)
    return tl.where(keys >= LEAST_KEY, keys, 0)


@triton.jit
def masses_of(keys):  # int32 -> int64
    return (keys.to(tl.float32, bitcast=True) * _ONE_MASS).to(tl.int64)
