"""Which implementation of each operator a CPU gets: decided once, when a runner starts, and passed on.

A GPU gets Triton's, with the same signatures, from `gpu/kernel_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS, GATED_ACTIVATIONS, Activate
from kernels.add_rms_norm import add_rms_norm, rms_norm, rms_norm_heads
from kernels.attention_variant import AttentionVariant, PagedAttention
from kernels.copy_blocks import copy_blocks
from kernels.deterministic_activations import (
    DETERMINISTIC_ACTIVATIONS,
    DETERMINISTIC_GATED_ACTIVATIONS,
)
from kernels.deterministic_attention import DeterministicAttention
from kernels.deterministic_linear import DeterministicPacker
from kernels.experts import choose_experts, run_experts
from kernels.layer_norm import layer_norm
from kernels.linear import Linear, LinearPacker
from kernels.paged_attention import TorchPagedAttention
from kernels.rope_kv_write import kv_write, rope_kv_write


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operators of a decoder. What each takes and means stands in its own file."""

    attentions: tuple[PagedAttention, ...]  # one per distinct variant of the model
    rope_kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    kv_write: Callable[[Tensor, Tensor, Tensor], None]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rms_norm_heads: Callable[[Tensor, Tensor, float], None]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    activations: Mapping[str, Activate]
    gated_activations: Mapping[str, Activate]
    choose_experts: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    run_experts: Callable[[Tensor, Tensor, Tensor, Sequence[Linear]], Tensor]
    copy_blocks: Callable[[Tensor, Tensor, Tensor], None]
    pack_linear: Callable[[Tensor, Tensor | None], Linear]


def select_kernels(
    dtype: torch.dtype,
    block_size: int,
    token_elements: int,
    variants: Sequence[AttentionVariant],
    deterministic: bool = False,
) -> Kernels:
    """`token_elements`: of one token's keys and values in one layer of this rank. `deterministic`: what an operator
    makes of a row has the same bits whatever rows it is called with."""
    attention = DeterministicAttention if deterministic else TorchPagedAttention
    packer = DeterministicPacker(dtype) if deterministic else LinearPacker(dtype)
    return Kernels(
        attentions=tuple(attention(variant, dtype, block_size, token_elements) for variant in variants),
        rope_kv_write=rope_kv_write,
        kv_write=kv_write,
        add_rms_norm=add_rms_norm,
        rms_norm=rms_norm,
        rms_norm_heads=rms_norm_heads,
        layer_norm=layer_norm,
        activations=DETERMINISTIC_ACTIVATIONS if deterministic else ACTIVATIONS,
        gated_activations=DETERMINISTIC_GATED_ACTIVATIONS if deterministic else GATED_ACTIVATIONS,
        choose_experts=choose_experts,
        run_experts=run_experts,
        copy_blocks=copy_blocks,
        pack_linear=packer.pack,
    )


def kv_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> tuple[int, ...]:
    """Of one layer's pool. On a CPU heads come first: what is gathered then is one matrix per head."""
    return (2, kv_heads, num_blocks, block_size, head_dim)
