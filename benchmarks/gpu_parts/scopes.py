"""What `gpu.py` runs: shapes, batches, lengths and loads, by device and by how much time there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gpu_parts.requests import OfflineLoad
from gpu_parts.shapes import LLAMA_8B, TINY, Shape


@dataclass(frozen=True, slots=True)
class Scope:
    shape: Shape
    dtype: torch.dtype
    steps: int  # of a decode row
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    chunks: tuple[int, ...]
    hit: int  # tokens of the prompt all but 64 of which are cached
    offline: OfflineLoad
    compared: OfflineLoad  # requests alike
    max_num_seqs: int
    max_num_batched_tokens: int


SCOPES = {
    ("cuda", False): Scope(
        LLAMA_8B,
        torch.bfloat16,
        64,
        (1, 8, 32, 64, 128, 256),
        (256, 1024, 8192),
        (512, 2048, 8192, 32_768),
        32_768,
        OfflineLoad(256, (100, 1024), (100, 1024)),
        OfflineLoad(64, (1024, 1024), (128, 128)),
        256,
        32_768,
    ),
    ("cuda", True): Scope(
        LLAMA_8B,
        torch.bfloat16,
        32,
        (1, 32, 256),
        (1024,),
        (2048, 8192),
        32_768,
        OfflineLoad(64, (100, 512), (50, 100)),
        OfflineLoad(32, (1024, 1024), (64, 64)),
        256,
        8192,
    ),
    ("cpu", True): Scope(
        TINY,
        torch.float32,
        8,
        (1, 4),
        (64,),
        (128,),
        512,
        OfflineLoad(8, (10, 50), (5, 20)),
        OfflineLoad(4, (32, 32), (8, 8)),
        8,
        256,
    ),
    ("cpu", False): Scope(
        TINY,
        torch.float32,
        64,
        (1, 8),
        (64, 256),
        (128, 256),
        1024,
        OfflineLoad(32, (10, 100), (10, 50)),
        OfflineLoad(16, (64, 64), (32, 32)),
        8,
        256,
    ),
}
