"""What a machine without a GPU decides by itself: the dtype to compute in and the memory of the pool."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from protocol.errors import InvalidRequest
from workers.model.model_spec import ModelSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_DEFAULT_POOL_BYTES = 1 << 30
_DEFAULT_POOL_SHARE = 0.1  # of the memory that is free at the start
# Under this, one row decodes faster in fp32 (hidden size 256, four layers: 1.2 ms a step against 1.4 in bf16, AVX-512
# with bf16) and greedy text hardly ever depends on what else is in the batch; at eight rows bf16 would win by a third.
_BF16_FROM_HIDDEN_SIZE = 512


def choose_dtype(name: str, spec: ModelSpec) -> torch.dtype:
    """`auto`: bf16 where the CPU computes in it and the model is large enough to gain from it, else fp32."""
    if name != "auto":
        return named_dtype(name)
    if spec.hidden_size < _BF16_FROM_HIDDEN_SIZE or not _computes_in_bf16():
        return torch.float32
    return torch.bfloat16


def named_dtype(name: str) -> torch.dtype:
    """Raises InvalidRequest for a name that is none."""
    if name not in _DTYPES:
        known = ", ".join(("auto", *_DTYPES))
        raise InvalidRequest(f"dtype must be one of {known}, not {name!r}", param="dtype")
    return _DTYPES[name]


def default_pool_bytes() -> int:
    """Bounded, because several replicas and everything else of a machine share its memory."""
    return min(_MAX_DEFAULT_POOL_BYTES, int(_available_bytes() * _DEFAULT_POOL_SHARE))


def _available_bytes() -> int:
    """What Linux could give without swapping, its file cache included; elsewhere all there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _computes_in_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
