"""What a runner is told at its start. Torch-free, so that whoever launches a worker can build one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """`directory` holds the model. None: decided by the model and the machine."""

    directory: Path
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    block_size: int = 16  # tokens
    max_model_len: int | None = None  # tokens
    kv_cache_memory_bytes: int | None = None  # of this rank
    gpu_memory_utilization: float = 0.9  # of a GPU's memory, for everything
    enforce_eager: bool = False  # no graphs
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    deterministic: bool = False
    load_format: str = "auto"
    seed: int = 0  # of dummy weights
