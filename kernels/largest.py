"""The largest numbers of each row, in descending order, with or without their places.

    largest(x, n) = the first n of x sorted downwards

For a CPU: the vocabulary is dealt into groups first, and only the groups with the n largest maxima are sorted. Whatever
lies in another group is no larger than n numbers found already.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GROUP = 16  # numbers; at 32,000 numbers and n = 64 the time is flat between 16 and 32


def largest(
    values: Tensor,  # [rows, size] fp32
    count: int,
) -> Tensor:  # [rows, min(count, size)] fp32
    count = min(count, values.shape[-1])
    candidates, _ = _candidates(values, count)
    ascending = np.sort(candidates.numpy(), -1)  # with vector instructions, several times faster than torch
    return torch.from_numpy(ascending[:, : -count - 1 : -1].copy())


def largest_with_places(
    values: Tensor,  # [rows, size] fp32
    count: int,
) -> tuple[Tensor, Tensor]:  # [rows, min(count, size)] fp32, and int64
    """Of equal numbers the first ones: so a smaller count finds the beginning of what a larger one does."""
    count = min(count, values.shape[-1])
    candidates, places = _candidates(values, count, with_ties=True)
    if places is None:
        places = torch.arange(values.shape[-1]).expand(values.shape)
    chosen = _unequal(candidates, places).topk(count).indices
    return candidates.gather(1, chosen), places.gather(1, chosen)


def _unequal(values: Tensor, places: Tensor) -> Tensor:  # [rows, size] fp32 and int64 -> int64
    """Numbers in the same order, and of equal ones the first is the largest."""
    bits = (values + 0.0).view(torch.int32)  # a zero with a minus is a zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) - places


def _candidates(values: Tensor, count: int, with_ties: bool = False) -> tuple[Tensor, Tensor | None]:
    """Numbers that the largest are among, and their places; None: all of them, in place.

    `with_ties`: whatever is as large as the last of the largest is among them too.
    """
    num_rows, size = values.shape
    num_groups, rest = divmod(size, _GROUP)
    if max(count, 1) * 2 > num_groups:
        return values, None
    body = num_groups * _GROUP
    groups = values[:, :body].view(num_rows, _GROUP, num_groups)  # columns: maxima are found side by side
    maxima = groups.amax(1)
    best = maxima.topk(count, sorted=False)
    if with_ties and best.values.numel():
        num_tied = int((maxima >= best.values.amin(-1, keepdim=True)).sum(-1).max())
        if num_tied > count:
            best = maxima.topk(num_tied, sorted=False)
    columns = best.indices
    places = (columns[:, None] + torch.arange(0, body, num_groups)[:, None]).flatten(1)
    if rest:
        places = torch.cat([places, torch.arange(body, size).expand(num_rows, -1)], 1)
    return values.gather(1, places), places
