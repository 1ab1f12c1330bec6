"""Launches of an 8B Llama: 32 query heads, 8 KV heads of 128, blocks of 64, bf16.

Targets are shares of the floor. A matmul's is what a library should reach, by 1.2: in deterministic mode a fifth may be
lost.
"""

from __future__ import annotations

from bounds_parts.bounds import Launch
from bounds_parts.hopper import MATMUL_FLOPS_PER_S, MEMORY_BYTES_PER_S

_HEADS, _KV_HEADS, _DIM, _HIDDEN, _FEATURES = 32, 8, 128, 4096, 14336
_GROUP = _HEADS // _KV_HEADS


def _decode(kernel: str, split: int, block_n: int, itemsize: int = 2, target: str = "85 %") -> Launch:
    rows, keys = 32, 4096
    kv_bytes = rows * keys * 2 * _KV_HEADS * _DIM * itemsize
    floor_s = kv_bytes / MEMORY_BYTES_PER_S
    programs = rows * _KV_HEADS * keys // split
    return Launch(kernel, "32 rows, 4k keys", floor_s, target, kv_bytes, programs, split / block_n)


def _prefill(kernel: str, block_m: int, block_n: int, target: str) -> Launch:
    tokens = 8192
    flops = 4 * _HEADS * _DIM * tokens * tokens / 2
    programs = tokens * _GROUP // block_m * _KV_HEADS
    floor_s = flops / MATMUL_FLOPS_PER_S
    memory_bytes = 4.0 * tokens * (_HEADS + _KV_HEADS) * _DIM
    return Launch(kernel, "8k tokens, causal", floor_s, target, memory_bytes, programs, tokens / 2 / block_n)


def _matmul(
    kernel: str, name: str, rows: int, size: tuple[int, int], tile: tuple[int, int, int], target: str
) -> Launch:
    """`size`: outputs, features; `tile`: rows, outputs, features."""
    (outputs, features), (block_m, block_n, block_k) = size, tile
    weight_bytes = 2.0 * outputs * features
    floor_s = max(weight_bytes / MEMORY_BYTES_PER_S, 2.0 * rows * outputs * features / MATMUL_FLOPS_PER_S)
    used = min(rows / block_m, 1.0)
    loaded = (block_n + used * block_m) / (block_n + block_m)
    programs = -(-rows // block_m) * outputs / block_n
    memory_bytes = weight_bytes + 2.0 * rows * (outputs + features)
    shape = f"{rows} rows, {name}"
    return Launch(kernel, shape, floor_s, target, memory_bytes, programs, features / block_k, loaded)


def _rows(kernel: str, shape: str, memory_bytes: float, programs: float) -> Launch:
    """Of a kernel that takes 8192 rows one by one."""
    return Launch(kernel, shape, memory_bytes / MEMORY_BYTES_PER_S, "85 %", memory_bytes, programs)


_UP, _OUT, _DOWN = (2 * _FEATURES, _HIDDEN), (_HIDDEN, _HIDDEN), (_HIDDEN, _FEATURES)
_WIDE, _LARGE, _FEW, _NARROW = (128, 128, 64), (256, 128, 64), (64, 64, 64), (64, 32, 128)
_MATMUL = "fixed_order_matmul bf16"
_ROWS = 8192
_QKV_BYTES = 2.0 * _ROWS * (_HEADS + 2 * _KV_HEADS) * _DIM
_TURN_BYTES = 2 * 2.0 * _ROWS * _DIM

LAUNCHES = (
    # Published of the tutorial's on an H100: 329 to 477 TFLOP/s (pytorch/benchmark#2391).
    _prefill("plain attention bf16, M128 N64 D128", 128, 64, "known: 42 to 61 %"),
    _decode("attention decode, bf16, M16 N64 D128 G4 B64", 512, 64),
    _decode("attention decode, bf16, M16 N64 D128 G4 B16", 512, 64),
    _decode("attention decode, fp8e4nv, M16 N64", 512, 64, itemsize=1),
    _decode("attention deterministic, bf16", 1024, 32),
    _prefill("attention prefill, bf16, M128 N64 D128", 128, 64, "51 %: 400 TFLOP/s"),
    _prefill("attention deterministic, bf16", 64, 32, "43 %"),
    _matmul(f"{_MATMUL}, many rows", "gate and up", 8192, _UP, _LARGE, "79 %"),
    _matmul(_MATMUL, "gate and up", 8192, _UP, _WIDE, "used for fewer"),
    _matmul(_MATMUL, "out", 1024, _OUT, _WIDE, "-"),
    _matmul(f"{_MATMUL}, few rows", "gate and up", 32, _UP, _FEW, "73 %"),
    _matmul(f"{_MATMUL}, few rows", "down", 32, _DOWN, _FEW, "used for wider"),
    _matmul(f"{_MATMUL}, few outputs", "down", 32, _DOWN, _NARROW, "67 %"),
    _matmul(f"{_MATMUL}, few outputs", "out", 32, _OUT, _NARROW, "54 %"),
    _rows("add_rms_norm bf16 4096", "8k rows", 4 * 2.0 * _ROWS * _HIDDEN, _ROWS),
    _rows("silu_mul bf16", "8k rows of 14336", 3 * 2.0 * _ROWS * _FEATURES, _ROWS * _FEATURES / 1024),
    _rows("rope_kv_write bf16 128", "8k tokens", 2 * _QKV_BYTES + _TURN_BYTES, _ROWS * 3),
)
