"""Loads one rank's weights: tensor by tensor from the checkpoint, straight into the fused, packed form they run in.

Called by the runners once, at their start. At no time does more than one linear layer exist twice.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.dispatch import Kernels
from kernels.experts import RunExperts
from kernels.linear import Linear
from workers.model.weights.checkpoint import Checkpoint
from workers.model.weights.fused_tensors import Fp8Use, FusedTensors, Progress
from workers.model.weights.layout_parts import (
    DecoderLayout,
    ExpertsLayout,
    LayerLayout,
    LinearLayout,
    MlpLayout,
    NormLayout,
)
from workers.model.weights.weight_layout import divided_vocabulary
from workers.shard import Shard

_CPU = torch.device("cpu")
_ALL_WIDE = Fp8Use()


@dataclass(frozen=True, slots=True)
class NormWeights:
    weight: Tensor  # [hidden], or [head_dim] of a head's norm
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class MlpWeights:
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    router: Linear
    experts: RunExperts


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: NormWeights
    qkv: Linear
    q_norm: NormWeights | None
    k_norm: NormWeights | None
    o: Linear
    attention_post_norm: NormWeights | None
    mlp_norm: NormWeights | None
    mlp: MlpWeights | ExpertsWeights
    mlp_post_norm: NormWeights | None
    kv_scales: Tensor | None = None  # [2, KV heads] of this rank, fp32; of an fp8 pool


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Tensor  # [vocabulary, embedding size], whole on every rank: one exchange less per step
    positions: Tensor | None  # [rows, hidden]
    project_in: Linear | None
    layers: tuple[LayerWeights, ...]
    final_norm: NormWeights | None
    project_out: Linear | None
    lm_head: Linear  # to this rank's part of the vocabulary, padded to equal parts


def load_weights(
    checkpoint: Checkpoint,
    layout: DecoderLayout,
    shard: Shard,
    dtype: torch.dtype,
    kernels: Kernels,
    on_progress: Progress | None = None,
    device: torch.device = _CPU,
    fp8: Fp8Use = _ALL_WIDE,
) -> DecoderWeights:
    """Each tensor goes from its file straight to its place on the device. Closes the checkpoint.

    Raises UnsupportedModel naming tensors that are missing, misshapen or left over.
    """
    pieces = list(layout.pieces())
    with closing(checkpoint):
        checkpoint.check(pieces, layout.ignored, layout.prefix)
        tensors = FusedTensors(checkpoint, shard, dtype, device, fp8, len(pieces), on_progress)
        return _Loader(tensors, shard, kernels, fp8.stored is not None).decoder(layout)


class _Loader:
    def __init__(self, tensors: FusedTensors, shard: Shard, kernels: Kernels, stored_in_fp8: bool) -> None:
        self._tensors = tensors
        self._shard = shard
        self._kernels = kernels
        self._stored_in_fp8 = stored_in_fp8  # what is wide all the same stays so

    def decoder(self, layout: DecoderLayout) -> DecoderWeights:
        embedding = self._tensors.one(layout.embedding)
        return DecoderWeights(
            embedding=embedding,
            positions=None if layout.positions is None else self._tensors.one(layout.positions),
            project_in=None if layout.project_in is None else self._linear(layout.project_in),
            layers=tuple(self._layer(layer) for layer in layout.layers),
            final_norm=self._norm(layout.final_norm),
            project_out=None if layout.project_out is None else self._linear(layout.project_out),
            lm_head=self._lm_head(layout, embedding),
        )

    def _layer(self, layout: LayerLayout) -> LayerWeights:
        attention_norm = self._norm(layout.attention_norm)
        assert attention_norm is not None, "every layer has one"
        return LayerWeights(
            attention_norm=attention_norm,
            qkv=self._layer_linear(layout.qkv),
            q_norm=self._norm(layout.q_norm),
            k_norm=self._norm(layout.k_norm),
            o=self._layer_linear(layout.o),
            attention_post_norm=self._norm(layout.attention_post_norm),
            mlp_norm=self._norm(layout.mlp_norm),
            mlp=self._experts(layout.mlp) if isinstance(layout.mlp, ExpertsLayout) else self._mlp(layout.mlp),
            mlp_post_norm=self._norm(layout.mlp_post_norm),
            kv_scales=self._tensors.kv_scales(layout.qkv.weights[0]),
        )

    def _experts(self, layout: ExpertsLayout) -> ExpertsWeights:
        router, num_experts = self._linear(layout.router), len(layout.experts)
        linears = [linear.weights for expert in layout.experts for linear in (expert.gate_up, expert.down)]
        if self._tensors.are_fp8(piece for pieces in linears for piece in pieces):
            return ExpertsWeights(
                router, self._kernels.pack_experts(map(self._tensors.fused_fp8, linears), num_experts)
            )
        pack = self._kernels.pack_experts if not self._stored_in_fp8 else self._kernels.pack_wide_experts
        return ExpertsWeights(router, pack(map(self._tensors.fused, linears), num_experts))

    def _mlp(self, layout: MlpLayout) -> MlpWeights:
        return MlpWeights(self._layer_linear(layout.gate_up), self._layer_linear(layout.down))

    def _norm(self, layout: NormLayout | None) -> NormWeights | None:
        if layout is None:
            return None
        if layout.weight is None:
            return NormWeights(self._tensors.ones(layout.size), None)
        weight = self._tensors.one(layout.weight, plus=1.0 if layout.spec.one_plus else 0.0)
        return NormWeights(weight, None if layout.bias is None else self._tensors.one(layout.bias))

    def _layer_linear(self, layout: LinearLayout) -> Linear:
        """In fp8 where the checkpoint is, or where it is wide throughout and fp8 was asked for."""
        if self._tensors.are_fp8(layout.weights):
            return self._kernels.pack_layer_linear(
                self._tensors.fused_fp8(layout.weights), self._bias(layout)
            )
        if self._stored_in_fp8:
            return self._linear(layout)
        return self._kernels.pack_layer_linear(self._tensors.fused(layout.weights), self._bias(layout))

    def _linear(self, layout: LinearLayout) -> Linear:
        return self._kernels.pack_linear(self._tensors.fused(layout.weights), self._bias(layout))

    def _bias(self, layout: LinearLayout) -> Tensor | None:
        """Read by all ranks, for the sake of the progress. A sum's is added once, by rank 0."""
        bias = self._tensors.fused(layout.biases) if layout.biases else None
        return None if layout.summed and self._shard.rank > 0 else bias

    def _lm_head(self, layout: DecoderLayout, embedding: Tensor) -> Linear:
        """Every rank's part is as wide as the first one's, so that they can be gathered."""
        vocabulary, size = layout.embedding.shape
        width = -(-vocabulary // self._shard.size)
        if layout.lm_head is not None:
            return self._kernels.pack_linear(self._tensors.filled((layout.lm_head,), width), None)
        (own,) = divided_vocabulary(layout.embedding.name, (vocabulary, size)).parts(self._shard)
        part = embedding[own]
        if len(part) < width:
            part = torch.cat([part, part.new_zeros(width - len(part), size)])
        return self._kernels.pack_linear(part, None)
