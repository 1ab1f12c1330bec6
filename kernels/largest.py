"""The largest numbers of each row, in descending order, with or without their places.

    largest(x, n) = the first n of x sorted downwards

On a CPU the vocabulary is dealt into groups first, and only the groups with the n largest maxima are sorted: whatever
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
    if not values.is_cpu:
        return values.topk(count).values
    candidates, _ = _candidates(values, count)
    ascending = np.sort(candidates.numpy(), -1)  # with vector instructions, several times faster than torch
    return torch.from_numpy(ascending[:, : -count - 1 : -1].copy())


def largest_with_places(
    values: Tensor,  # [rows, size] fp32
    count: int,
) -> tuple[Tensor, Tensor]:  # [rows, min(count, size)] fp32, and int64
    count = min(count, values.shape[-1])
    if not values.is_cpu:
        best = values.topk(count)
        return best.values, best.indices
    candidates, places = _candidates(values, count)
    best = candidates.topk(count)
    return best.values, best.indices if places is None else places.gather(1, best.indices)


def _candidates(values: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Numbers that the largest are among, and their places; None: all of them, in place."""
    num_rows, size = values.shape
    num_groups, rest = divmod(size, _GROUP)
    if max(count, 1) * 2 > num_groups:
        return values, None
    body = num_groups * _GROUP
    groups = values[:, :body].view(num_rows, _GROUP, num_groups)  # columns: maxima are found side by side
    columns = groups.amax(1).topk(count, sorted=False).indices
    places = (columns[:, None] + torch.arange(0, body, num_groups)[:, None]).flatten(1)
    if rest:
        places = torch.cat([places, torch.arange(body, size).expand(num_rows, -1)], 1)
    return values.gather(1, places), places
