"""Which implementation of each operator a device gets: decided once, when a runner starts, and passed on.

Today every device gets plain torch. Triton's come in here with the same signatures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.add_rms_norm import add_rms_norm, rms_norm
from kernels.copy_blocks import copy_blocks
from kernels.linear import Linear, LinearPacker
from kernels.paged_attention import TorchPagedAttention
from kernels.rope_kv_write import rope_kv_write
from kernels.silu_mul import silu_mul


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operators of a decoder. What each takes and means stands in its own file."""

    attention: TorchPagedAttention
    rope_kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    copy_blocks: Callable[[Tensor, Tensor, Tensor], None]
    pack_linear: Callable[[Tensor, Tensor | None], Linear]


def select_kernels(dtype: torch.dtype, block_size: int, token_elements: int) -> Kernels:
    """`token_elements`: of one token's keys and values in one layer of this rank."""
    return Kernels(
        attention=TorchPagedAttention(dtype, block_size, token_elements),
        rope_kv_write=rope_kv_write,
        add_rms_norm=add_rms_norm,
        rms_norm=rms_norm,
        silu_mul=silu_mul,
        copy_blocks=copy_blocks,
        pack_linear=LinearPacker(dtype).pack,
    )


def kv_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> tuple[int, ...]:
    """Of one layer's pool. On a CPU heads come first: what is gathered then is one matrix per head."""
    return (2, kv_heads, num_blocks, block_size, head_dim)
