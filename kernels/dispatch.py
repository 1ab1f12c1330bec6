"""Which implementation of each operator a CPU gets: decided once, when a runner starts, and passed on.

A GPU gets Triton's, with the same signatures, from `gpu/kernel_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS, GATED_ACTIVATIONS, Activate
from kernels.add_rms_norm import add_rms_norm, rms_norm
from kernels.attention_variant import AttentionVariant, PagedAttention
from kernels.copy_blocks import copy_blocks
from kernels.deterministic_activations import (
    DETERMINISTIC_ACTIVATIONS,
    DETERMINISTIC_GATED_ACTIVATIONS,
)
from kernels.deterministic_attention import DeterministicAttention
from kernels.deterministic_linear import DeterministicPacker
from kernels.experts import GroupedExperts, PackExperts, choose_experts
from kernels.fp8_linear import Fp8Packer
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.linear import Linear, LinearPacker
from kernels.paged_attention import TorchPagedAttention
from kernels.quantize_fp8 import Weight
from kernels.rope_kv_write import kv_write, kv_write_fp8, rope_kv_write, rope_kv_write_fp8


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operators of a decoder. What each takes and means stands in its own file."""

    attentions: tuple[PagedAttention, ...]  # one per distinct variant of the model
    rope_kv_write: Callable[..., None]  # `norm` and `eps` may be given besides, over fp8 `scales`
    kv_write: Callable[..., None]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    activations: Mapping[str, Activate]
    gated_activations: Mapping[str, Activate]
    choose_experts: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    copy_blocks: Callable[[Tensor, Tensor, Tensor], None]
    pack_linear: Callable[[Tensor, Tensor | None], Linear]
    pack_layer_linear: Callable[[Weight, Tensor | None], Linear]  # of attention and MLPs: fp8 where asked for
    pack_experts: PackExperts  # fp8 where asked for
    pack_wide_experts: PackExperts  # never


def select_kernels(
    dtype: torch.dtype,
    block_size: int,
    token_elements: int,
    variants: Sequence[AttentionVariant],
    deterministic: bool = False,
    fp8_kv: bool = False,
    fp8_weights: bool = False,
) -> Kernels:
    """`token_elements`: of one token's keys and values in one layer of this rank. `deterministic`: what an operator
    makes of a row has the same bits whatever rows it is called with. `fp8_kv`: the pool is of float8_e4m3fn;
    `fp8_weights`: so is what layers multiply with."""
    attention = DeterministicAttention if deterministic else TorchPagedAttention
    packer = DeterministicPacker(dtype) if deterministic else LinearPacker(dtype)
    pack_layer: Callable[..., Linear] = Fp8Packer(deterministic).pack if fp8_weights else packer.pack
    return Kernels(
        attentions=tuple(
            attention(variant, dtype, block_size, token_elements, fp8_kv) for variant in variants
        ),
        rope_kv_write=rope_kv_write_fp8 if fp8_kv else rope_kv_write,
        kv_write=kv_write_fp8 if fp8_kv else kv_write,
        add_rms_norm=add_rms_norm,
        rms_norm=rms_norm,
        add_layer_norm=add_layer_norm,
        layer_norm=layer_norm,
        activations=DETERMINISTIC_ACTIVATIONS if deterministic else ACTIVATIONS,
        gated_activations=DETERMINISTIC_GATED_ACTIVATIONS if deterministic else GATED_ACTIVATIONS,
        choose_experts=choose_experts,
        copy_blocks=copy_blocks,
        pack_linear=packer.pack,
        pack_layer_linear=pack_layer,
        pack_experts=partial(GroupedExperts, pack=pack_layer),
        pack_wide_experts=partial(GroupedExperts, pack=packer.pack),
    )


def kv_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> tuple[int, ...]:
    """Of one layer's pool. On a CPU heads come first: what is gathered then is one matrix per head."""
    return (2, kv_heads, num_blocks, block_size, head_dim)
