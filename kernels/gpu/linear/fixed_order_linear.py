"""y = x Wᵀ + b of one weight, with bits that depend on the row alone: `deterministic_linear.py` of a GPU.

Few rows would leave most of a tile idle, and many are read too often in small ones. Whether another tile makes the same
bits is not assumed but found out when a weight is packed, once for every shape: it is used only where every probed sum
agrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.gpu.compilation import MANY_ROWS
from kernels.gpu.linear.fixed_order_matmul import TILE, Tile, compiled, fixed_order_matmul
from kernels.linear import Linear

# Half as wide as `TILE`, so that a small weight keeps twice the processors busy; and one for weights that are smaller
# still. Both have 32 KB of the weight on their way to a processor. Compiled, never run.
FEW_ROWS_TILE = Tile(rows=64, outputs=64, features=64, num_warps=4, num_stages=5)
FEW_OUTPUTS_TILE = Tile(rows=64, outputs=32, features=128, num_warps=4, num_stages=5)
# A processor should multiply faster than the L2 cache feeds it: this reads a quarter less for a product than `TILE`.
MANY_ROWS_TILE = Tile(rows=256, outputs=128, features=64, num_warps=8, num_stages=3)
_LARGE_TARGETS = ("sm_90", "sm_100")  # whose shared memory holds them
_PROBED_ROWS = 256
_PROBED_OUTPUTS = 4096  # as many columns of tiles as tell everything; the rest of a vocabulary repeats them

Multiply = Callable[[Tensor, Tensor, Tensor, Tile], None]  # x, weight, out, which is written


@dataclass(frozen=True, slots=True)
class TileChoice:
    """By the number of rows, among tiles that make the same bits. None: the one of `fixed_order_matmul` does."""

    few: Tile | None = None  # for all rows that it holds
    many: Tile | None = None
    least_many: int = 0  # rows from which on that one is used

    def of(self, num_rows: int) -> Tile | None:
        if self.few is not None and num_rows <= self.few.rows:
            return self.few
        return self.many if num_rows >= self.least_many else None

    def all(self) -> set[Tile | None]:
        return {self.few, None, self.many}


class FixedOrderLinear:
    __slots__ = ("_bias", "_tiles", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, tiles: TileChoice) -> None:
        self._weight = weight  # [outputs, features]
        self._bias = bias  # [outputs]
        self._tiles = tiles

    def __call__(self, x: Tensor) -> Tensor:  # [rows, features] -> [rows, outputs]
        return fixed_order_matmul(x, self._weight, self._bias, tile=self._tiles.of(len(x)))


class FixedOrderPacker:
    """Makes the linears of a model, which have few shapes."""

    def __init__(self, target: str, num_processors: int) -> None:
        self._has_room = target in _LARGE_TARGETS
        self._num_processors = num_processors
        self._choices: dict[tuple[torch.Size, torch.dtype, bool], TileChoice] = {}

    def pack(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Waits for the device where the shape is new."""
        key = weight.shape, weight.dtype, bias is None
        if key not in self._choices:
            self._choices[key] = self._choose(weight)
            # No step that comes before traffic has every number of rows.
            for tile in self._choices[key].all():
                fixed_order_matmul(weight[:1], weight, bias, tile=tile)
        return FixedOrderLinear(weight, bias, self._choices[key])

    def _choose(self, weight: Tensor) -> TileChoice:
        if weight.dtype == torch.float32:
            return TileChoice()
        num_outputs = len(weight)
        few, many = self.few_rows_tile(num_outputs), MANY_ROWS_TILE if self._has_room else None
        return TileChoice(
            few if tiles_agree(weight, few, TILE) else None,
            many if many is not None and tiles_agree(weight, many, TILE) else None,
            self.least_many(num_outputs),
        )

    def few_rows_tile(self, num_outputs: int) -> Tile:
        """The one that all processors work with, and reads the rows less often if both do."""
        idle = num_outputs < FEW_ROWS_TILE.outputs * self._num_processors
        return FEW_OUTPUTS_TILE if self._has_room and idle else FEW_ROWS_TILE

    def least_many(self, num_outputs: int) -> int:
        """Rows from which on the largest tile leaves no processor without work."""
        columns = -(-num_outputs // MANY_ROWS_TILE.outputs)
        full = MANY_ROWS_TILE.rows * (-(-self._num_processors // columns) - 1) + 1
        return max(full, TILE.rows + 1)


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


COMPILED = (
    compiled("fixed_order_matmul bf16, few rows", "bf16", FEW_ROWS_TILE, MANY_ROWS),
    compiled(
        "fixed_order_matmul bf16, few outputs", "bf16", FEW_OUTPUTS_TILE, MANY_ROWS, targets=_LARGE_TARGETS
    ),
    compiled("fixed_order_matmul bf16, many rows", "bf16", MANY_ROWS_TILE, MANY_ROWS, targets=_LARGE_TARGETS),
)
