"""Which rows of a batch a pass is for: a slice where they lie side by side, else their indices.

Used by the sampler's passes. A slice is edited where it lies; indices cost a copy there and a copy back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Numbers = np.ndarray[Any, np.dtype[Any]]  # a column
Places = slice | Tensor  # [n] int64


def places_of(
    wanted: Numbers,  # [rows] bool
) -> Places | None:
    """None where no row is wanted."""
    (indices,) = wanted.nonzero()
    return at_places(indices) if len(indices) else None


def at_places(
    indices: Numbers,  # [n] int64, ascending, at least one
) -> Places:
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):
        return slice(first, last + 1)
    return torch.from_numpy(indices)


def take(rows: Tensor, places: Places) -> Tensor:
    """Those rows: a view of them or a copy."""
    return rows[places] if isinstance(places, slice) else rows.index_select(0, places)


def put_back(rows: Tensor, places: Places, taken: Tensor) -> None:
    """Write to `rows` what was done in place to the rows that `take` gave."""
    if not isinstance(places, slice):
        rows.index_copy_(0, places, taken)
