"""Which attention each layer of a model computes on one rank. Few differ, so that one plan per step serves many layers.

Called by `cpu_runner.py`, which has an attention made for each distinct one; the decoder gets both.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernels.attention_variant import AttentionVariant
from workers.model.model_spec import AlibiSpec, LayerSpec, ModelSpec
from workers.shard import Shard


def layer_variants(spec: ModelSpec, shard: Shard, num_positions: int) -> tuple[AttentionVariant, ...]:
    """One per layer. A window that the served context of `num_positions` never leaves is none."""
    scale = spec.head_dim**-0.5 if spec.attention.scale is None else spec.attention.scale

    def variant(layer: LayerSpec) -> AttentionVariant:
        alibi = layer.positions if isinstance(layer.positions, AlibiSpec) else None
        return AttentionVariant(
            scale=scale if layer.attention_scale is None else layer.attention_scale,
            window=None if layer.window is None or layer.window >= num_positions else layer.window,
            softcap=spec.attention.softcap,
            alibi_slopes=None if alibi is None else _own(alibi.slopes, shard),
            alibi_in_bfloat16=alibi is not None and alibi.in_bfloat16,
        )

    return tuple(map(variant, spec.layers))


def distinct(variants: Sequence[AttentionVariant]) -> tuple[AttentionVariant, ...]:
    """In the order in which layers first need them: that of `Kernels.attentions` and `ForwardBatch.attention`."""
    return tuple(dict.fromkeys(variants))


def _own(slopes: tuple[float, ...], shard: Shard) -> tuple[float, ...]:
    share = len(slopes) // shard.size
    return slopes[shard.rank * share : (shard.rank + 1) * share]
