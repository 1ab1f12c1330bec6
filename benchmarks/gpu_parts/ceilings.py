"""What this machine reaches in this run: bytes copied and read a second, and products of matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SIZES = {"cuda": (8 << 30, 8192), "cpu": (64 << 20, 512)}  # bytes copied, side of the matrices


@dataclass(frozen=True, slots=True)
class Ceilings:
    copied_bytes_per_s: float  # read and written
    read_bytes_per_s: float
    flops: float  # per second


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    num_bytes, side = _SIZES[device.type]
    copied, read = _bytes_per_s(device, num_bytes)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return Ceilings(copied, read, 2 * side**3 / _best_s(device, lambda: torch.mm(a, b)))


def _bytes_per_s(device: torch.device, num_bytes: int) -> tuple[float, float]:
    """Copied, which counts twice, and read."""
    source = torch.randint(0, 99, (num_bytes // 8,), device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(device, lambda: target.copy_(source))
    return 2 * num_bytes / copy_s, num_bytes / _best_s(device, source.sum)


def _best_s(device: torch.device, work: Callable[[], object], repeats: int = 10) -> float:
    work()
    best = float("inf")
    for _ in range(repeats):
        _synchronize(device)
        begun_s = time.perf_counter()
        work()
        _synchronize(device)
        best = min(best, time.perf_counter() - begun_s)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
