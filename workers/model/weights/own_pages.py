"""Tensors in pages of their own, which the system has back as soon as the tensor is freed. Used by `load_weights.py`.

A weight lives as a plain tensor until it is packed. malloc keeps the holes that such tensors leave for others of their
size, and few of the next are: loading a model of 214 MB ended with 271 MB in use.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

_MIN_BYTES = 1 << 18  # smaller ones are no burden, and a mapping each would be


def empty_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Like `torch.empty`."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < _MIN_BYTES:
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # It keeps the mapping.
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(shape)
