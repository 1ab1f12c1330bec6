"""Cutting many rows into tiles of a few fixed sizes: what deterministic operators compute in.

A library picks its kernel, and with it the order of every sum, by the shape it is called with. So a row keeps its bits
if it is only ever computed in shapes that were seen, on this machine, to give every place in them the same bits.
Used by `deterministic_linear.py` and `deterministic_products.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

ALIGNMENT_BYTES = (
    64  # of everything that torch allocates on a CPU; some kernels sum otherwise behind another start
)
_MAX_PADDING = 16  # rows: about what one more pass over a weight costs

Shape = TypeVar("Shape")


@lru_cache(maxsize=4096)
def cut(num_rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Tiles, largest first, that hold `num_rows` together; only the last may be left partly empty. `sizes` ascend."""
    tiles: list[int] = []
    while num_rows > 0:
        holding = next((size for size in sizes if size >= num_rows), None)
        held = [size for size in sizes if size <= num_rows]
        if holding is not None and (not held or holding - num_rows <= _MAX_PADDING):
            tiles.append(holding)
            break
        tiles.append(held[-1])
        num_rows -= held[-1]
    return tuple(tiles)


def aligned(x: Tensor) -> Tensor:
    """`x`, or a copy of it that starts where torch's own allocations do and has no gaps."""
    if x.is_contiguous() and x.data_ptr() % ALIGNMENT_BYTES == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def agreeing(
    shapes: Iterable[Shape], references: Iterable[Shape], agree: Callable[[Shape, Shape], bool]
) -> list[Shape]:
    """Those of `shapes` that give the bits of the first reference that does so itself; none when there is no such."""
    candidates = list(shapes)
    for reference in references:
        if agree(reference, reference):
            return [shape for shape in candidates if shape == reference or agree(shape, reference)]
    return []
