"""Puts a model's layers together from its spec, its weights and a device's kernels. Called by `decoder.py`, once.

All that varies between models is decided here, so that the forward pass has nothing left to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.dispatch import Kernels
from kernels.paged_attention import AttentionVariant
from workers.model.layers.attention_variants import distinct
from workers.model.layers.feed_forward import make_feed_forward
from workers.model.layers.norms import HeadNorm, NoNorm, Norm, make_norm
from workers.model.layers.residual import (
    LayerParts,
    Mix,
    NormAfter,
    NormAround,
    NormBefore,
    Parallel,
    ParallelOneNorm,
)
from workers.model.layers.rotary import RotaryTables
from workers.model.layers.self_attention import SelfAttention
from workers.model.model_spec import ModelSpec, ResidualOrder, RotarySpec
from workers.model.weights.load_weights import DecoderWeights, LayerWeights, NormWeights
from workers.tensor_parallel import TensorParallelGroup

_MIXES: dict[ResidualOrder, Callable[[LayerParts], Mix]] = {
    ResidualOrder.NORM_BEFORE: NormBefore,
    ResidualOrder.NORM_AFTER: NormAfter,
    ResidualOrder.NORM_AROUND: NormAround,
    ResidualOrder.PARALLEL: Parallel,
    ResidualOrder.PARALLEL_ONE_NORM: ParallelOneNorm,
}


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    attention: SelfAttention
    mix: Mix


class LayerMaker:
    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        variants: Sequence[AttentionVariant],
        rotary: RotaryTables,
        kernels: Kernels,
        group: TensorParallelGroup,
    ) -> None:
        """`variants`: one per layer; the kernels' attentions are the distinct ones."""
        self._spec = spec
        self._weights = weights
        self._variants = [distinct(variants).index(variant) for variant in variants]
        self._rotary = rotary
        self._kernels = kernels
        self._group = group

    def layers(self) -> tuple[DecoderLayer, ...]:
        mix = _MIXES[self._spec.order]
        return tuple(
            DecoderLayer(self._attention(index, layer), mix(self._parts(index, layer)))
            for index, layer in enumerate(self._weights.layers)
        )

    def input_norm(self, index: int) -> Norm:
        """Between the residual stream and layer `index`; behind the last layer, the model's final norm."""
        if index == self._spec.num_layers:
            return self._norm(self._weights.final_norm)
        if self._spec.order is ResidualOrder.NORM_AFTER:
            return NoNorm()
        return self._norm(self._weights.layers[index].attention_norm)

    def _attention(self, index: int, weights: LayerWeights) -> SelfAttention:
        positions = self._spec.layers[index].positions
        return SelfAttention(
            qkv=weights.qkv,
            clip=self._spec.attention.clip,
            head_norm=self._head_norm(weights),
            table=self._rotary.index(positions) if isinstance(positions, RotarySpec) else None,
            variant=self._variants[index],
            num_heads=self._spec.num_heads // self._group.size,
            head_dim=self._spec.head_dim,
            kernels=self._kernels,
            kv_scales=weights.kv_scales,
        )

    def _head_norm(self, weights: LayerWeights) -> HeadNorm | None:
        spec = self._spec
        if spec.attention.head_norm is None:
            return None
        assert weights.q_norm is not None and weights.k_norm is not None, "the layout followed the spec"
        heads = spec.num_heads // self._group.size, spec.kv_heads_per_rank(self._group.size)
        return HeadNorm.of(weights.q_norm, weights.k_norm, *heads, spec.attention.head_norm.eps)

    def _parts(self, index: int, weights: LayerWeights) -> LayerParts:
        return LayerParts(
            o=weights.o,
            attention_norm=self._norm(weights.attention_norm),
            attention_post_norm=self._norm(weights.attention_post_norm),
            mlp_norm=self._norm(weights.mlp_norm),
            mlp=make_feed_forward(self._spec.layers[index].mlp, weights.mlp, self._kernels),
            mlp_post_norm=self._norm(weights.mlp_post_norm),
            next_norm=self.input_norm(index + 1),
            all_reduce=self._group.all_reduce,
        )

    def _norm(self, weights: NormWeights | None) -> Norm:
        return make_norm(self._spec.norm, weights, self._kernels)
