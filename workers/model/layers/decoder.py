"""The decoder's body: one forward pass over a step's tokens, on one rank's part of the heads and features.

Called by the runners. Knows blocks only as slots and as attention plans, and nothing of requests. What sets one
model apart from another is built into its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.dispatch import Kernels
from workers.model.layers.decoder_layers import LayerMaker
from workers.model.layers.embedding import Embedding, LogitsHead
from workers.model.layers.rotary import RotaryTables
from workers.model.model_spec import ModelSpec
from workers.model.weights.load_weights import DecoderWeights
from workers.tensor_parallel import TensorParallelGroup


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A step's tokens, rows one after the other."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64
    slots: Tensor  # [tokens] int64: block · block_size + offset
    attention: tuple[Any, ...]  # the plans of the kernels' attentions, one each
    # [wanted] int64: the tokens after which one is drawn or scored; None: all, in their order
    wanted: Tensor | None


class Decoder:
    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        variants: Sequence[AttentionVariant],  # one per layer
        rotary: RotaryTables,
        kernels: Kernels,
        group: TensorParallelGroup,
    ) -> None:
        maker = LayerMaker(spec, weights, variants, rotary, kernels, group)
        self._embedding = Embedding(spec.embedding, weights)
        self._rotary = rotary
        self._first_norm = maker.input_norm(0)
        self._layers = maker.layers()
        self._head = LogitsHead(spec, weights, group)

    def forward(self, batch: ForwardBatch, pool: Sequence[Tensor]) -> Tensor | None:
        """Write the tokens' KV. What the wanted tokens came to, [wanted, hidden]; None when none is wanted."""
        turns = self._rotary.at(batch.positions)
        residual = self._embedding(batch.token_ids, batch.positions)
        normed = self._first_norm(residual)
        last, wanted = len(self._layers) - 1, batch.wanted
        for index, layer in enumerate(self._layers):
            kv = pool[index]
            q = layer.attention.project(normed, turns, batch.slots, kv)
            if index == last and wanted is not None and not len(wanted):
                return None  # a chunk that draws nothing has done its work: its KV is written
            out = layer.attention.attend(q, kv, batch.attention)
            if index == last and wanted is not None:  # behind the last attention no other tokens' rows matter
                out, normed, residual = (each[wanted] for each in (out, normed, residual))
            normed, residual = layer.mix(out, normed, residual)
        return normed

    def logits(self, normed: Tensor) -> Tensor | None:
        """Of rows [tokens, hidden] that `forward` gave: [tokens, vocabulary] on rank 0, None elsewhere."""
        return self._head(normed)

    def logits_part(self, normed: Tensor) -> tuple[Tensor, int]:
        """This rank's tokens of the vocabulary alone, without an exchange: [tokens, of this rank], and the first id."""
        return self._head.part(normed)
