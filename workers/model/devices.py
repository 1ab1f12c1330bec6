"""Which device a rank computes on, and in which dtype by itself. Called where a rank starts; imports torch."""

from __future__ import annotations

import torch

from protocol.errors import InvalidRequest, UnsupportedModel
from workers.model.cpu_facts import named_dtype
from workers.model.model_spec import ModelSpec

_BF16_FROM_CAPABILITY = (8, 0)


def choose_device(name: str, rank: int) -> torch.device:
    """`auto`: a GPU where torch finds one. Ranks of one machine that see all its GPUs take one each."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidRequest(
            "device is cuda, and torch finds no GPU: install a driver and a torch with CUDA, or set device to cpu",
            param="device",
        )
    return torch.device("cuda", rank % torch.cuda.device_count())


def choose_gpu_dtype(name: str, spec: ModelSpec) -> torch.dtype:
    """`auto`: bf16, or fp16 on a GPU that has no bf16 of its own."""
    if name != "auto":
        return named_dtype(name)
    has_bf16 = torch.cuda.get_device_capability() >= _BF16_FROM_CAPABILITY
    return torch.bfloat16 if has_bf16 else torch.float16


def require_paired_dims(spec: ModelSpec) -> None:
    """Of a model for a GPU."""
    if spec.head_dim % 2:
        raise UnsupportedModel(
            f"the model's heads have {spec.head_dim} dimensions, which a GPU takes in pairs: set device to cpu"
        )


def require_fp8(found: torch.dtype | None, option: str) -> torch.dtype:
    """`found`: what `kernels/gpu/fp8_types.py` says of the device that `option` is set for."""
    if found is None:
        raise InvalidRequest(
            f"{option} is fp8, which needs a GPU of compute capability 8.9 or above, or a gfx942 of AMD's:"
            f" leave {option} out, or choose such a GPU",
            param=option,
        )
    return found
