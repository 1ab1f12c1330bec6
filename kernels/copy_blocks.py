"""kv[:, :, destination] = kv[:, :, source] for whole blocks: copy on write.

All reads come before all writes, so a destination may be another pair's source.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copy_blocks(
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim], written
    sources: Tensor,  # [pairs] int64
    destinations: Tensor,  # [pairs] int64
) -> None:
    if kv.dtype.itemsize == 1:  # torch copies no fp8 by indices
        kv = kv.view(torch.uint8)
    kv.index_copy_(2, destinations, kv.index_select(2, sources))
