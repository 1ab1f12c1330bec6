"""Rows as kernels take them: what wrappers check of arguments, and how a program that takes a whole row is laid out."""

from __future__ import annotations

import triton
from torch import Tensor

_ELEMENTS_A_WARP = 512  # 16 a thread: two vectors of 16 bytes in flight, in bf16
_MAX_WARPS = 16


def row_block(width: int) -> tuple[int, int]:
    """Elements of a program's tile, which is the width or the power of two above, and its warps."""
    block: int = triton.next_power_of_2(width)
    return block, min(max(block // _ELEMENTS_A_WARP, 1), _MAX_WARPS)


def assert_rows(name: str, rows: Tensor, width: int) -> None:
    """[any, width], where one row may be any distance from the next."""
    assert rows.dim() == 2 and rows.shape[1] == width, f"{name} is {tuple(rows.shape)}, not [tokens, {width}]"
    assert rows.stride(1) == 1 or width == 1, f"{name}: a row's elements must follow each other"


def assert_packed(name: str, tensor: Tensor, *shape: int) -> None:
    assert tensor.shape == shape, f"{name} is {tuple(tensor.shape)}, not {shape}"
    assert tensor.is_contiguous(), f"{name} must lie in one piece"
