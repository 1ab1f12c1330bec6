"""The operators that a GPU gets: decided once, when a runner starts, as `kernels/dispatch.py` does for CPUs.

Imports triton. The pool's layout here is `[2, num_blocks, kv_heads, block_size, head_dim]`, in which one block of one
head lies in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.dispatch import Kernels
from kernels.edited_rows import EditedRows
from kernels.gpu.activations import ACTIVATIONS, GATED_ACTIVATIONS
from kernels.gpu.add_rms_norm import add_rms_norm, rms_norm
from kernels.gpu.apply_deltas import apply_deltas
from kernels.gpu.attention.combine import Partials
from kernels.gpu.attention.operator import TritonPagedAttention
from kernels.gpu.attention.plan import AttentionPlanner
from kernels.gpu.attention.shapes import attention_shapes, target_of
from kernels.gpu.copy_blocks import copy_blocks
from kernels.gpu.experts.choice import choose_experts
from kernels.gpu.experts.stacked_experts import StackedExperts
from kernels.gpu.layer_norm import add_layer_norm, layer_norm
from kernels.gpu.linear.fixed_order_linear import FixedOrderPacker
from kernels.gpu.linear.fp8_linear import Fp8Packer
from kernels.gpu.rope_kv_write import kv_write, rope_kv_write
from kernels.gpu.sampling.keep_newest import keep_newest
from kernels.gpu.sampling.token_draw import TokenDraw
from kernels.gpu.sampling.weights import SamplingRows
from kernels.linear import Linear, PlainLinear

_PROGRAMS_PER_PROCESSOR = 3
_PARTIALS_BYTES = 64 << 20  # enough for two million tokens behind decoding rows of an 8B model


@dataclass(frozen=True, slots=True)
class GpuSizes:
    """What the table depends on: one rank's share of a model, and the most that a step may hold."""

    device: torch.device
    dtype: torch.dtype
    num_processors: int
    max_rows: int
    max_keys: int  # of a row
    num_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    deterministic: bool = False
    fp8_kv: bool = False
    fp8_weights: torch.dtype | None = None  # of what layers multiply with


class Draw(Protocol):
    """`TokenDraw`, or what stands for it."""

    def most_likely(self, logits: Tensor, out: Tensor) -> None: ...
    def best_pairs(self, part: Tensor, first_id: int, out: Tensor) -> None: ...
    def best_of_ranks(self, pairs: Tensor, out: Tensor) -> None: ...
    def draw(self, logits: Tensor, rows: SamplingRows, out: Tensor) -> None: ...
    def draw_edited(
        self,
        logits: Tensor,
        sampling: SamplingRows,
        rows: Tensor,
        edits: EditedRows,
        out: Tensor,
        scores: Tensor,
    ) -> None: ...
    def score(self, logits: Tensor, token_ids: Tensor, num_best: Tensor, out: Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class GpuKernels:
    """The decoder's operators, and those that a step needs around it."""

    decoder: Kernels
    planner: AttentionPlanner  # of all attentions
    apply_deltas: Callable[[Tensor, Tensor], None]
    keep_newest: Callable[[Tensor, Tensor, Tensor], None]
    draw: Draw


def select_gpu_kernels(sizes: GpuSizes, variants: Sequence[AttentionVariant]) -> GpuKernels:
    """`deterministic`: one shape and one split rule for all rows, and products in a fixed order."""
    planner = make_planner(sizes)
    partials = Partials.allocate(planner.num_slots, sizes.num_heads, sizes.head_dim, sizes.device)
    pack: Callable[..., Linear] = PlainLinear
    if sizes.deterministic:
        pack = FixedOrderPacker(target_of(sizes.device), sizes.num_processors).pack
    pack_layer = pack
    if sizes.fp8_weights is not None:
        pack_layer = Fp8Packer(sizes.device, sizes.dtype, sizes.fp8_weights, sizes.deterministic).pack
    return GpuKernels(
        decoder=Kernels(
            attentions=tuple(TritonPagedAttention(variant, planner, partials) for variant in variants),
            rope_kv_write=rope_kv_write,
            kv_write=kv_write,
            add_rms_norm=add_rms_norm,
            rms_norm=rms_norm,
            add_layer_norm=add_layer_norm,
            layer_norm=layer_norm,
            activations=ACTIVATIONS,
            gated_activations=GATED_ACTIVATIONS,
            choose_experts=choose_experts,
            copy_blocks=copy_blocks,
            pack_linear=pack,
            pack_layer_linear=pack_layer,
            pack_experts=partial(
                StackedExperts, fp8_dtype=sizes.fp8_weights, deterministic=sizes.deterministic
            ),
            pack_wide_experts=partial(StackedExperts, deterministic=sizes.deterministic),
        ),
        planner=planner,
        apply_deltas=apply_deltas,
        keep_newest=keep_newest,
        draw=TokenDraw(sizes.max_rows, sizes.vocab_size, sizes.device),
    )


def gpu_kv_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> tuple[int, ...]:
    """Of one layer's pool."""
    return (2, num_blocks, kv_heads, block_size, head_dim)


def make_planner(sizes: GpuSizes) -> AttentionPlanner:
    group = sizes.num_heads // sizes.kv_heads
    decode, prefill = attention_shapes(
        target_of(sizes.device), group, sizes.head_dim, sizes.dtype, sizes.deterministic, sizes.fp8_kv
    )
    most_splits = -(-sizes.max_keys // decode.split_tokens)
    slot_bytes = 4 * sizes.num_heads * (sizes.head_dim + 2)
    affordable = max(_PARTIALS_BYTES // slot_bytes, most_splits)
    return AttentionPlanner(
        group=group,
        kv_heads=sizes.kv_heads,
        decode=decode,
        prefill=prefill,
        num_slots=min(sizes.max_rows * most_splits, affordable),
        enough_programs=_PROGRAMS_PER_PROCESSOR * sizes.num_processors,
    )
