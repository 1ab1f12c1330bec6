"""y = x Wᵀ + b of one weight in fp8, rows of x quantised as they come: what `kernels/fp8_linear.py` means.

A library multiplies (cuBLASLt on sm_90) where torch has one for rows with a scale each, and what it makes is right:
that is found out before the first weight is packed. Elsewhere, for sizes that it refuses and in deterministic mode, the
kernel of `fixed_order_matmul.py` does. Which dtype the device multiplies, the caller knows from `fp8_types.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.gpu.fp8_types import E4M3, E4M3_FNUZ
from kernels.gpu.linear.fixed_order_linear import tiles_agree
from kernels.gpu.linear.fixed_order_matmul import FP8_INSTRUCTIONS, FP8_TILE, Tile, compiled, fp8_matmul
from kernels.gpu.linear.quantize_fp8 import quantize_fp8
from kernels.linear import Linear
from kernels.quantize_fp8 import Fp8Weight, Weight

# Half as wide as `FP8_TILE`, so that a weight keeps twice the processors busy; five stages of it, 80 KB, are on their
# way at a time, and two programs fit a processor of sm_90. Compiled, never run.
FP8_FEW_ROWS_TILE = Tile(rows=64, outputs=64, features=128, num_warps=4, num_stages=5)
_LIBRARY_MULTIPLE = 16  # of features and outputs
_PROBED_ROWS = (1, 3, 17, 130)


class Fp8Linear:
    """By Triton."""

    __slots__ = ("_bias", "_few_rows_tile", "_scales", "_weight")

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, few_rows_tile: Tile) -> None:
        self._weight = weight  # [outputs, features] fp8
        self._scales = scales  # [outputs, 1] fp32
        self._bias = bias  # [outputs]
        self._few_rows_tile = few_rows_tile

    def __call__(self, x: Tensor) -> Tensor:  # [rows, features] -> [rows, outputs]
        quantized, scales = quantize_fp8(x, self._weight.dtype)
        out = x.new_empty(len(x), len(self._weight))
        tile = self._few_rows_tile if len(x) <= self._few_rows_tile.rows else FP8_TILE
        fp8_matmul(quantized, scales, self._weight, self._scales, self._bias, out, tile)
        return out


class LibraryFp8Linear:
    """By torch's operator, which is private to it."""

    __slots__ = ("_bias", "_scales", "_weight")

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._weight = weight.T  # [features, outputs] fp8, features side by side
        self._scales = scales.T  # [1, outputs] fp32
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        quantized, scales = quantize_fp8(x, self._weight.dtype)
        return torch._scaled_mm(
            quantized, self._weight, scales, self._scales, self._bias, out_dtype=x.dtype, use_fast_accum=False
        )


class Fp8Packer:
    """Makes the linears of a model. A weight in fp8 stands beside the given one only while it is made of it."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,  # of weights and rows as they are given
        fp8_dtype: torch.dtype,
        deterministic: bool,
    ) -> None:
        """`deterministic`: a row's bits depend on the row alone."""
        self._dtype = dtype
        self._fp8_dtype = fp8_dtype
        self._deterministic = deterministic
        self._has_library = not deterministic and library_works(device, dtype, fp8_dtype)
        self._agreeing: dict[torch.Size, bool] = {}

    def pack(self, weight: Weight, bias: Tensor | None) -> Linear:
        """Waits for the device where mode is deterministic and the shape new."""
        if not isinstance(weight, Fp8Weight):
            weight = Fp8Weight(*quantize_fp8(weight, self._fp8_dtype))
        quantized, scales = weight
        if self._has_library and not any(size % _LIBRARY_MULTIPLE for size in quantized.shape):
            return LibraryFp8Linear(quantized, scales, bias)
        few = not self._deterministic or self._agree(quantized)
        return Fp8Linear(quantized, scales, bias, FP8_FEW_ROWS_TILE if few else FP8_TILE)

    def _agree(self, weight: Tensor) -> bool:
        if weight.shape not in self._agreeing:
            like = weight.new_empty(1, dtype=self._dtype).expand(weight.shape)
            self._agreeing[weight.shape] = tiles_agree(like, FP8_FEW_ROWS_TILE, FP8_TILE, self._multiply)
        return self._agreeing[weight.shape]

    def _multiply(self, x: Tensor, weight: Tensor, out: Tensor, tile: Tile) -> None:
        fp8_matmul(*quantize_fp8(x, self._fp8_dtype), *quantize_fp8(weight, self._fp8_dtype), None, out, tile)


def library_works(device: torch.device, dtype: torch.dtype, fp8_dtype: torch.dtype) -> bool:
    """Whether torch multiplies rows that have a scale each, here and into that dtype, with and without a bias."""
    try:
        return all(torch.allclose(*pair, rtol=0.02, atol=0.05) for pair in _probes(device, dtype, fp8_dtype))
    except (RuntimeError, ValueError, AttributeError, TypeError):
        return False


def _probes(
    device: torch.device, dtype: torch.dtype, fp8_dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the library makes of some rows, and what it should."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    bias = random(48)
    weight, scales = quantize_fp8(random(48, 64) / 8.0, fp8_dtype)
    for num_rows in _PROBED_ROWS:
        x = random(num_rows, 64)
        quantized, x_scales = quantize_fp8(x, fp8_dtype)
        meant = (quantized.float() * x_scales) @ (weight.float() * scales).T
        yield LibraryFp8Linear(weight, scales, None)(x).float(), meant
        yield LibraryFp8Linear(weight, scales, bias)(x).float(), meant + bias.float()


COMPILED = tuple(
    compiled(name, fp8.name, FP8_FEW_ROWS_TILE, FP8_INSTRUCTIONS, "bf16", fp8.targets)
    for name, fp8 in (
        ("fp8_matmul e4m3, few rows", E4M3),
        ("fp8_matmul e4m3fnuz, few rows", E4M3_FNUZ),
    )
)
