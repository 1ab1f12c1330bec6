"""How one replica's engine is set up: the options that users know from vLLM, and their resolved defaults.

Built by `trunkline.LLM` and by the controller; read by `engine_builder.py`. Knows neither Ray nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import InvalidRequest

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "safetensors", "dummy")
QUANTIZATIONS = (None, "fp8")
KV_CACHE_DTYPES = ("auto", "fp8")
DEVICES = ("auto", "cpu", "cuda")
BLOCK_SIZES = {"cpu": 16, "cuda": 64}  # by themselves


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`model` is a name as `protocol/model_source.py` understands it. None: decided by model and machine."""

    model: str = "sapling"
    served_model_name: str | None = None
    tensor_parallel_size: int = 1
    device: str = "auto"  # a GPU where there is one
    dtype: str = "auto"
    quantization: str | None = None  # of weights as they are loaded, and of what they are multiplied with
    kv_cache_dtype: str = "auto"  # that of the model
    max_model_len: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9  # of a GPU's memory; a machine without one ignores it
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    deterministic: bool = False  # outputs do not depend on batch, chunks or cache hits, bit for bit
    async_scheduling: bool = False  # plan step N+1 while a CPU computes N, as is always done with a GPU
    enforce_eager: bool = False  # launch a GPU's kernels one by one instead of replaying graphs
    load_format: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.device in DEVICES, "device", f"must be one of {', '.join(DEVICES)}")
        _check(self.dtype in DTYPES, "dtype", f"must be one of {', '.join(DTYPES)}")
        _check(self.quantization in QUANTIZATIONS, "quantization", "must be fp8, or left out")
        _check(
            self.kv_cache_dtype in KV_CACHE_DTYPES,
            "kv_cache_dtype",
            f"must be one of {', '.join(KV_CACHE_DTYPES)}",
        )
        _check(self.load_format in LOAD_FORMATS, "load_format", f"must be one of {', '.join(LOAD_FORMATS)}")
        _check(self.tensor_parallel_size >= 1, "tensor_parallel_size", "must be at least 1")
        _check(self.max_num_seqs >= 1, "max_num_seqs", "must be at least 1")
        _check(self.max_num_batched_tokens >= 1, "max_num_batched_tokens", "must be at least 1")
        _check(0.0 < self.gpu_memory_utilization <= 1.0, "gpu_memory_utilization", "must be in (0, 1]")
        for name in ("max_model_len", "block_size", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, "must be at least 1")

    def block_size_on(self, device_type: str) -> int:
        """`device_type`: torch's word for it."""
        return self.block_size or BLOCK_SIZES[device_type]


def _check(holds: bool, option: str, rule: str) -> None:
    if not holds:
        raise InvalidRequest(f"{option} {rule}", param=option)
