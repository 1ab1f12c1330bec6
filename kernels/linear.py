"""y = x Wᵀ + b over weights packed once, at load: by `workers/model/weights/`, for `workers/model/layers/`.

Packing pays because `F.linear` reorders the weight in every call: at one row and 3072x768 it halves the time in bf16.
oneDNN's packed operators are private to torch, so a packer tries them once and falls back to `F.linear`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]  # [tokens, in_features] -> [tokens, out_features]

# fp32 gains from packing only once the weight outgrows the cache: 512x192 takes 10 µs plain and 20 packed,
# 3072x768 takes 170 and 137 (one row, one thread, AVX-512).
_MIN_PACKED_FP32_ELEMENTS = 1 << 19
# The rows that oneDNN chooses the weight's layout for. In fp32 one row gains too: 3072x768 takes 270 µs with the layout
# for 2 to 64 rows and 370 with that for one, eight rows 400 and 610; in bf16 all take 150 (one thread, AVX-512).
_EXPECTED_ROWS = 16


class PlainLinear:
    """What every other linear means."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight  # [out_features, in_features]
        self._bias = bias  # [out_features]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """oneDNN's inner product over a weight in oneDNN's own layout."""

    __slots__ = ("_apply", "_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self._bias = bias
        self._apply = torch.ops.mkldnn._linear_pointwise.default  # the overload itself: no resolving per call

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._apply(x, self._weight, self._bias, "none", [], "")
        return result


class LinearPacker:
    """Turns a dense weight into the fastest linear that this machine computes correctly."""

    def __init__(self, dtype: torch.dtype, min_packed_fp32_elements: int = _MIN_PACKED_FP32_ELEMENTS) -> None:
        self._min_elements = 0 if dtype == torch.bfloat16 else min_packed_fp32_elements
        self._packs = _packing_works(dtype)

    def pack(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if self._packs and weight.numel() >= self._min_elements:
            return PackedLinear(weight, bias)
        return PlainLinear(weight, bias)


def _packing_works(dtype: torch.dtype) -> bool:
    """Whether the private operators exist here and agree with `F.linear`, with and without a bias."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((3, 64), (48, 64), (48,))
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    try:
        return all(
            torch.allclose(PackedLinear(weight, b)(x), F.linear(x, weight, b), rtol=tolerance, atol=tolerance)
            for b in (None, bias)
        )
    except (RuntimeError, AttributeError, TypeError):
        return False
