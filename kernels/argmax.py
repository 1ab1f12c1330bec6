"""The most likely token of each row; of several alike, the first.

    argmax(x) = min { i : x_i = max x }

For a CPU, where torch's own compares one number at a time: the maximum is found first, chunk by chunk at the speed of
memory, and then only the first chunk that holds it is searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 256


def argmax(
    logits: Tensor,  # [rows, vocabulary]
) -> Tensor:  # [rows] int64
    logits = logits.float()  # bf16 is converted faster than it is compared
    size = logits.shape[-1]
    begins = _first_best_chunk(logits) * _CHUNK
    indices = (begins + torch.arange(_CHUNK)).clamp_(max=size - 1)  # the last token again is never the first
    return begins.squeeze(-1) + logits.gather(1, indices).argmax(-1)


def _first_best_chunk(logits: Tensor) -> Tensor:  # -> [rows, 1] int64
    num_rows, size = logits.shape
    num_chunks, rest = divmod(size, _CHUNK)
    best = logits[:, : num_chunks * _CHUNK].view(num_rows, num_chunks, _CHUNK).amax(-1)
    if rest:
        best = torch.cat([best, logits[:, -rest:].amax(-1, keepdim=True)], 1)
    return best.argmax(-1, keepdim=True)
