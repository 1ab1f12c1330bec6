"""Activations whose bits do not depend on an element's place: the other operators of `dispatch.py` never do.

torch computes exp, erf and tanh of whole vectors otherwise than those of the rest behind them, and otherwise again
where rows do not follow each other without a gap, by a unit in the last place. So rows go through in dense tiles that
leave no rest and are too small to be divided among threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS, Activate, gated

_VECTOR_ELEMENTS = 64  # or a multiple of what any processor takes at once
_MAX_TILE_ELEMENTS = 1 << 14  # from here on, torch gives an activation to several threads


def in_row_tiles(activate: Activate) -> Activate:
    def activate_rows(x: Tensor) -> Tensor:  # [tokens, features]
        num_rows = _rows_together(x.shape[1])
        if len(x) <= num_rows:
            return activate(x.contiguous())
        return torch.cat([activate(rows.contiguous()) for rows in torch.split(x, num_rows)])

    return activate_rows


def _rows_together(num_features: int) -> int:
    """A row by itself is always the same call, whatever rest it leaves."""
    if num_features % _VECTOR_ELEMENTS:
        return 1
    return max(_MAX_TILE_ELEMENTS // num_features, 1)


DETERMINISTIC_ACTIVATIONS = {name: in_row_tiles(activate) for name, activate in ACTIVATIONS.items()}
DETERMINISTIC_GATED_ACTIVATIONS = {
    name: gated(activate) for name, activate in DETERMINISTIC_ACTIVATIONS.items()
}
