"""Which numbers of eight bits a device multiplies and keeps: e4m3, in its maker's own variant, or none.

Asked where a model is loaded, of quantised weights and of stored keys and values alike; what a None means to a user is
said there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Fp8Type:
    dtype: torch.dtype
    name: str  # as Triton calls it
    targets: tuple[str, ...]  # of `compilation.py`, those that have it


E4M3 = Fp8Type(torch.float8_e4m3fn, "fp8e4nv", ("sm_90", "sm_100"))
E4M3_FNUZ = Fp8Type(torch.float8_e4m3fnuz, "fp8e4b8", ("gfx942",))
FP8_TYPES = (E4M3, E4M3_FNUZ)

_FIRST_CAPABILITY = (8, 9)  # of NVIDIA's GPUs that have them


def fp8_dtype_of(device: torch.device) -> torch.dtype | None:
    """None where the device has none. A CPU interprets what most devices have."""
    if device.type == "cpu":
        return E4M3.dtype
    if torch.version.hip is not None:
        architecture: str = torch.cuda.get_device_properties(device).gcnArchName  # "gfx942:sramecc+:xnack-"
        return E4M3_FNUZ.dtype if architecture.startswith("gfx942") else None
    return fp8_dtype_of_capability(*torch.cuda.get_device_capability(device))


def fp8_dtype_of_capability(major: int, minor: int) -> torch.dtype | None:
    """Of an NVIDIA GPU."""
    return E4M3.dtype if (major, minor) >= _FIRST_CAPABILITY else None
