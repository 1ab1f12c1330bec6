"""Loads one rank's weights: tensor by tensor from the checkpoint, straight into the fused, packed form they run in.

Called by `cpu_runner.py` once, at its start. At no time does more than one layer exist twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear import Linear
from workers.model.checkpoint import Checkpoint
from workers.model.weight_layout import DecoderLayout, LayerLayout, LinearLayout, Piece
from workers.shard import Shard

PackLinear = Callable[[Tensor, Tensor | None], Linear]
Progress = Callable[[int, int], None]  # tensors loaded, tensors in all


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: Tensor  # [hidden]
    qkv: Linear
    o: Linear
    mlp_norm: Tensor  # [hidden]
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Tensor  # [vocabulary, hidden], whole on every rank: one exchange less per step
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]
    lm_head: Linear  # to this rank's part of the vocabulary, padded to equal parts


def load_weights(
    checkpoint: Checkpoint,
    layout: DecoderLayout,
    shard: Shard,
    dtype: torch.dtype,
    pack: PackLinear,
    on_progress: Progress | None = None,
) -> DecoderWeights:
    """Closes the checkpoint. Raises UnsupportedModel naming tensors that are missing, misshapen or left over."""
    pieces = list(layout.pieces())
    with closing(checkpoint):
        checkpoint.check(pieces, layout.ignored)
        return _Loader(checkpoint, shard, dtype, pack, len(pieces), on_progress).decoder(layout)


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        shard: Shard,
        dtype: torch.dtype,
        pack: PackLinear,
        num_pieces: int,
        on_progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._shard = shard
        self._dtype = dtype
        self._pack = pack
        self._num_pieces = num_pieces
        self._num_loaded = 0
        self._on_progress = on_progress

    def decoder(self, layout: DecoderLayout) -> DecoderWeights:
        embedding = self._tensor(layout.embedding)
        layers = tuple(self._layer(layer) for layer in layout.layers)
        final_norm = self._tensor(layout.final_norm)
        return DecoderWeights(embedding, layers, final_norm, self._lm_head(layout, embedding))

    def _layer(self, layout: LayerLayout) -> LayerWeights:
        return LayerWeights(
            attention_norm=self._tensor(layout.attention_norm),
            qkv=self._linear(layout.qkv),
            o=self._linear(layout.o),
            mlp_norm=self._tensor(layout.mlp_norm),
            gate_up=self._linear(layout.gate_up),
            down=self._linear(layout.down),
        )

    def _linear(self, layout: LinearLayout) -> Linear:
        weight = self._fused(layout.weights)
        bias = self._fused(layout.biases) if layout.biases else None
        if layout.summed and self._shard.rank > 0:
            bias = None  # read all the same, for the sake of the progress; added once, by rank 0
        return self._pack(weight, bias)

    def _lm_head(self, layout: DecoderLayout, embedding: Tensor) -> Linear:
        """Every rank's part is as wide as the first one's, so that they can be gathered."""
        piece = layout.lm_head or Piece(layout.embedding.name, layout.embedding.shape, axis=0)
        part = embedding[piece.part(self._shard)] if layout.lm_head is None else self._tensor(piece)
        missing = -(-piece.shape[0] // self._shard.size) - part.shape[0]
        if missing:
            part = torch.cat([part, part.new_zeros(missing, part.shape[1])])
        return self._pack(part, None)

    def _fused(self, pieces: tuple[Piece, ...]) -> Tensor:
        """Several tensors one below the other, each copied once to its place."""
        if len(pieces) == 1:
            return self._tensor(pieces[0])
        sizes = [self._num_rows(piece) for piece in pieces]
        fused = torch.empty(sum(sizes), *pieces[0].shape[1:], dtype=self._dtype)
        for piece, target in zip(pieces, torch.split(fused, sizes), strict=True):
            target.copy_(self._read(piece))
        return fused

    def _num_rows(self, piece: Piece) -> int:
        if piece.axis != 0:
            return piece.shape[0]
        part = piece.part(self._shard)
        return int(part.stop - part.start)

    def _tensor(self, piece: Piece) -> Tensor:
        """A copy of our own: what safetensors hands out may be a view of the file."""
        return self._read(piece).to(self._dtype, copy=True, memory_format=torch.contiguous_format)

    def _read(self, piece: Piece) -> Tensor:
        tensor = self._checkpoint.read(piece, self._shard)
        self._num_loaded += 1
        if self._on_progress is not None:
            self._on_progress(self._num_loaded, self._num_pieces)
        return tensor
