"""y = x Wᵀ + b with both operands in fp8, in plain torch: what `gpu/linear/fp8_linear.py` means, and what a CPU runs.

    y[t, n] = scale[t] · scale[n] · Σ_k q(x)[t, k] q(W)[n, k] + b[n]        q and scales as in `quantize_fp8.py`

Here it is for comparing answers and for models that fit the memory no other way, not for speed: a CPU has no products
of fp8, so every call widens the weight, a part at a time. Of a weight of 4096x4096, one row takes 4.4 ms and 256 rows
121, in bf16 packed 0.9 and 20, in fp32 2.9 and 102 (one thread, AVX-512 with products of bf16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear import Linear
from kernels.quantize_fp8 import Fp8Weight, Weight, halves_of, quantize_fp8

_PART_ELEMENTS = 1 << 20  # of the weight that are wide at a time: they stay in a core's cache
_HALVES_SCALE = 256.0  # what `halves_of` leaves out; a row that has a NaN has a scale of NaN


class Fp8Linear:
    __slots__ = ("_bias", "_dtype", "_parts", "_scales")

    def __init__(self, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> None:
        """`dtype`: of products and sums. In fp64 those of e4m3 are exact up to 170,000 features: no order matters."""
        quantized, scales = weight if isinstance(weight, Fp8Weight) else quantize_weight(weight)
        self._parts = torch.split(quantized, _part_rows(quantized))
        self._scales = scales.T * _HALVES_SCALE  # [1, outputs]
        self._bias = bias
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, features] -> [tokens, outputs]
        quantized, scales = quantize_fp8(x)
        wide = quantized.to(self._dtype)
        sums = torch.cat(
            [
                F.linear(wide, halves_of(part.view(torch.int8).to(torch.int16)).to(self._dtype))
                for part in self._parts
            ],
            1,
        )
        sums = sums.mul_(scales).mul_(self._scales)
        return (sums if self._bias is None else sums.add_(self._bias)).to(x.dtype)


class Fp8Packer:
    """`deterministic`: a row's bits depend on the row alone."""

    def __init__(self, deterministic: bool) -> None:
        self._dtype = torch.float64 if deterministic else torch.float32

    def pack(self, weight: Weight, bias: Tensor | None) -> Linear:
        return Fp8Linear(weight, bias, self._dtype)


def quantize_weight(weight: Tensor) -> Fp8Weight:
    """`quantize_fp8` of a weight, whose fp32 copy would take four times the memory of what comes of it."""
    quantized = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(weight), 1)
    num_rows = _part_rows(weight)
    for begin in range(0, len(weight), num_rows):
        part = slice(begin, begin + num_rows)
        quantized[part], scales[part] = quantize_fp8(weight[part])
    return Fp8Weight(quantized, scales)


def _part_rows(weight: Tensor) -> int:
    return max(_PART_ELEMENTS // weight.shape[1], 1)
