"""From tokens to the residual stream, and from its end to logits. Built by `decoder.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.model_spec import EmbeddingSpec, ModelSpec
from workers.model.weights.load_weights import DecoderWeights
from workers.tensor_parallel import TensorParallelGroup


class Embedding:
    """Every rank computes it whole."""

    def __init__(self, spec: EmbeddingSpec, weights: DecoderWeights) -> None:
        self._table = weights.embedding
        # As a checkpoint's training had it: the factor itself is in the model's dtype.
        scale = float(torch.tensor(spec.scale, dtype=weights.embedding.dtype))
        self._scale = None if scale == 1.0 else scale
        self._project = weights.project_in
        self._positions = weights.positions
        self._offset = 0 if spec.positions is None else spec.positions.offset

    def __call__(
        self,
        token_ids: Tensor,  # [tokens] int64
        positions: Tensor,  # [tokens] int64
    ) -> Tensor:  # [tokens, hidden]
        hidden = F.embedding(token_ids, self._table)
        if self._scale is not None:
            hidden.mul_(self._scale)
        if self._project is not None:
            hidden = self._project(hidden)
        if self._positions is not None:
            hidden.add_(F.embedding(positions + self._offset, self._positions))
        return hidden


class LogitsHead:
    """Each rank computes its part of the vocabulary, and rank 0 gathers them."""

    def __init__(self, spec: ModelSpec, weights: DecoderWeights, group: TensorParallelGroup) -> None:
        self._project = weights.project_out
        self._lm_head = weights.lm_head
        self._vocab_size = spec.vocab_size
        self._softcap = spec.logits_softcap
        self._group = group

    def __call__(self, normed: Tensor) -> Tensor | None:  # [samples, hidden] -> [samples, vocabulary]
        gathered = self._group.gather(self._padded_part(normed))
        return None if gathered is None else self._capped(gathered[:, : self._vocab_size])

    def part(self, normed: Tensor) -> tuple[Tensor, int]:
        """[samples, hidden] -> [samples, tokens of this rank], and the first of them."""
        logits = self._padded_part(normed)
        first = self._group.rank * logits.shape[1]
        return self._capped(logits[:, : max(self._vocab_size - first, 0)]), first

    def _padded_part(self, normed: Tensor) -> Tensor:
        return self._lm_head(normed if self._project is None else self._project(normed))

    def _capped(self, logits: Tensor) -> Tensor:
        if self._softcap is None:
            return logits
        return logits.float().div_(self._softcap).tanh_().mul_(self._softcap)
