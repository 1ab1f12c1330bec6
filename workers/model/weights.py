"""Loads one rank's weights: tensor by tensor from the checkpoint, straight into the fused, packed form they run in.

Called by the runners once, at their start. At no time does more than one linear layer exist twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.dispatch import Kernels
from kernels.experts import RunExperts
from kernels.linear import Linear
from workers.model.checkpoint import Checkpoint
from workers.model.layout_parts import (
    DecoderLayout,
    ExpertsLayout,
    LayerLayout,
    LinearLayout,
    MlpLayout,
    NormLayout,
)
from workers.model.own_pages import empty_pages
from workers.model.weight_layout import divided_vocabulary
from workers.model.weight_piece import Piece
from workers.shard import Shard

PackLinear = Callable[[Tensor, Tensor | None], Linear]
Progress = Callable[[int, int], None]  # tensors loaded, tensors in all
_CPU = torch.device("cpu")


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
) -> DecoderWeights:
    """Each tensor goes from its file straight to its place on the device. Closes the checkpoint.

    Raises UnsupportedModel naming tensors that are missing, misshapen or left over.
    """
    pieces = list(layout.pieces())
    with closing(checkpoint):
        checkpoint.check(pieces, layout.ignored, layout.prefix)
        return _Loader(checkpoint, shard, dtype, kernels, len(pieces), on_progress, device).decoder(layout)


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        shard: Shard,
        dtype: torch.dtype,
        kernels: Kernels,
        num_pieces: int,
        on_progress: Progress | None,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._shard = shard
        self._dtype = dtype
        self._pack = kernels.pack_linear
        self._pack_layer = kernels.pack_layer_linear
        self._pack_experts = kernels.pack_experts
        self._num_pieces = num_pieces
        self._num_loaded = 0
        self._on_progress = on_progress
        self._device = device

    def decoder(self, layout: DecoderLayout) -> DecoderWeights:
        embedding = self._tensor(layout.embedding)
        return DecoderWeights(
            embedding=embedding,
            positions=None if layout.positions is None else self._tensor(layout.positions),
            project_in=None if layout.project_in is None else self._linear(layout.project_in, self._pack),
            layers=tuple(self._layer(layer) for layer in layout.layers),
            final_norm=self._norm(layout.final_norm),
            project_out=None if layout.project_out is None else self._linear(layout.project_out, self._pack),
            lm_head=self._lm_head(layout, embedding),
        )

    def _layer(self, layout: LayerLayout) -> LayerWeights:
        attention_norm = self._norm(layout.attention_norm)
        assert attention_norm is not None, "every layer has one"
        return LayerWeights(
            attention_norm=attention_norm,
            qkv=self._linear(layout.qkv, self._pack_layer),
            q_norm=self._norm(layout.q_norm),
            k_norm=self._norm(layout.k_norm),
            o=self._linear(layout.o, self._pack_layer),
            attention_post_norm=self._norm(layout.attention_post_norm),
            mlp_norm=self._norm(layout.mlp_norm),
            mlp=self._experts(layout.mlp) if isinstance(layout.mlp, ExpertsLayout) else self._mlp(layout.mlp),
            mlp_post_norm=self._norm(layout.mlp_post_norm),
        )

    def _experts(self, layout: ExpertsLayout) -> ExpertsWeights:
        router = self._linear(layout.router, self._pack)
        linears = (linear for expert in layout.experts for linear in (expert.gate_up, expert.down))
        weights = (self._fused(linear.weights) for linear in linears)
        return ExpertsWeights(router, self._pack_experts(weights, len(layout.experts)))

    def _mlp(self, layout: MlpLayout) -> MlpWeights:
        return MlpWeights(
            self._linear(layout.gate_up, self._pack_layer), self._linear(layout.down, self._pack_layer)
        )

    def _norm(self, layout: NormLayout | None) -> NormWeights | None:
        if layout is None:
            return None
        if layout.weight is None:
            return NormWeights(torch.ones(layout.size, dtype=self._dtype, device=self._device), None)
        weight = self._read(layout.weight).float()
        weight = (weight + 1.0 if layout.spec.one_plus else weight).to(self._device, self._dtype, copy=True)
        return NormWeights(weight, None if layout.bias is None else self._tensor(layout.bias))

    def _linear(self, layout: LinearLayout, pack: PackLinear) -> Linear:
        weight = self._fused(layout.weights)
        bias = self._fused(layout.biases) if layout.biases else None
        if layout.summed and self._shard.rank > 0:
            bias = None  # read all the same, for the sake of the progress; added once, by rank 0
        return pack(weight, bias)

    def _lm_head(self, layout: DecoderLayout, embedding: Tensor) -> Linear:
        """Every rank's part is as wide as the first one's, so that they can be gathered."""
        vocabulary, size = layout.embedding.shape
        width = -(-vocabulary // self._shard.size)
        if layout.lm_head is not None:
            return self._pack(self._filled((layout.lm_head,), width), None)
        (own,) = divided_vocabulary(layout.embedding.name, (vocabulary, size)).parts(self._shard)
        part = embedding[own]
        if len(part) < width:
            part = torch.cat([part, part.new_zeros(width - len(part), size)])
        return self._pack(part, None)

    def _tensor(self, piece: Piece) -> Tensor:
        return self._fused((piece,))

    def _fused(self, pieces: tuple[Piece, ...]) -> Tensor:
        """Several tensors one below the other."""
        return self._filled(pieces, sum(piece.part_shape(self._shard)[0] for piece in pieces))

    def _filled(self, pieces: tuple[Piece, ...], num_rows: int) -> Tensor:
        """Each piece copied once to its place; what they leave free at the end is zero."""
        shape = (num_rows, *pieces[0].part_shape(self._shard)[1:])
        fused = self._empty(shape)
        end = 0
        for piece in pieces:
            start, end = end, end + piece.part_shape(self._shard)[0]
            fused[start:end].copy_(self._read(piece))
        fused[end:].zero_()
        return fused

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        if self._device.type == "cpu":
            return empty_pages(shape, self._dtype)
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _read(self, piece: Piece) -> Tensor:
        """What safetensors hands out may be a view of the file."""
        tensor = self._checkpoint.read(piece, self._shard)
        self._num_loaded += 1
        if self._on_progress is not None:
            self._on_progress(self._num_loaded, self._num_pieces)
        return tensor
