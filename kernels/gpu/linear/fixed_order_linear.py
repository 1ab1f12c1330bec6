"""y = x Wᵀ + b of one weight, with bits that depend on the row alone: `deterministic_linear.py` of a GPU.

Few rows would leave most of the tile for many rows idle. Whether a smaller tile makes the same bits is not assumed but
found out when a weight is packed, once for every shape: it is used only where every probed sum agrees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.gpu.compilation import MANY_ROWS
from kernels.gpu.linear.fixed_order_matmul import TILE, Tile, compiled, fixed_order_matmul
from kernels.linear import Linear

# Half as wide as `TILE`, so that a small weight keeps twice the processors busy. Compiled, never run.
FEW_ROWS_TILE = Tile(rows=64, outputs=64, features=64, num_warps=4, num_stages=5)
_PROBED_ROWS = 128
_PROBED_OUTPUTS = 4096  # as many columns of tiles as tell everything; the rest of a vocabulary repeats them

Multiply = Callable[[Tensor, Tensor, Tensor, Tile], None]  # x, weight, out, which is written


class FixedOrderLinear:
    __slots__ = ("_bias", "_few_rows_tile", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, few_rows_tile: Tile | None) -> None:
        """`few_rows_tile`: one that is known to make the same bits as the tile for many rows."""
        self._weight = weight  # [outputs, features]
        self._bias = bias  # [outputs]
        self._few_rows_tile = few_rows_tile

    def __call__(self, x: Tensor) -> Tensor:  # [rows, features] -> [rows, outputs]
        few = self._few_rows_tile
        tile = few if few is not None and len(x) <= few.rows else None
        return fixed_order_matmul(x, self._weight, self._bias, tile=tile)


class FixedOrderPacker:
    """Makes the linears of a model, which have few shapes."""

    def __init__(self) -> None:
        self._agreeing: dict[tuple[torch.Size, torch.dtype], bool] = {}

    def pack(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Waits for the device where the shape is new."""
        key = weight.shape, weight.dtype
        if key not in self._agreeing:
            self._agreeing[key] = weight.dtype != torch.float32 and tiles_agree(weight, FEW_ROWS_TILE, TILE)
        return FixedOrderLinear(weight, bias, FEW_ROWS_TILE if self._agreeing[key] else None)


def _multiply(x: Tensor, weight: Tensor, out: Tensor, tile: Tile) -> None:
    fixed_order_matmul(x, weight, None, out, tile)


def tiles_agree(like: Tensor, tile: Tile, other: Tile, multiply: Multiply = _multiply) -> bool:
    """Whether both make the same fp32 sums of random rows and a random weight of that shape, at every place of a tile.
    Unrounded, most sums tell."""
    generator = torch.Generator(like.device).manual_seed(0)
    num_outputs, num_features = min(len(like), _PROBED_OUTPUTS), like.shape[1]
    x, weight = (
        torch.randn(rows, num_features, generator=generator, device=like.device).to(like.dtype)
        for rows in (_PROBED_ROWS, num_outputs)
    )
    sums = [torch.empty(_PROBED_ROWS, num_outputs, device=like.device) for _ in range(2)]
    for out, each in zip(sums, (tile, other), strict=True):
        multiply(x, weight, out, each)
    return torch.equal(*sums)


COMPILED = (compiled("fixed_order_matmul bf16, few rows", "bf16", FEW_ROWS_TILE, MANY_ROWS),)
