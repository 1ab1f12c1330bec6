"""The decoder's body: one forward pass over a step's tokens, on one rank's part of the heads and features.

Called by `cpu_runner.py`. Knows blocks only as slots and as an attention plan, and nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import Kernels
from kernels.paged_attention import AttentionPlan
from workers.model.model_spec import ModelSpec
from workers.model.weights import DecoderWeights, LayerWeights
from workers.tensor_parallel import TensorParallelGroup


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A step's tokens, rows one after the other."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64
    slots: Tensor  # [tokens] int64: block · block_size + offset
    attention: AttentionPlan
    sampled: Tensor  # [samples] int64: the tokens after which one is drawn


class Decoder:
    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        rotary: Tensor,  # [positions, 2, 1, head_dim]
        kernels: Kernels,
        group: TensorParallelGroup,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._rotary = rotary
        self._kernels = kernels
        self._group = group
        self._num_heads = spec.num_heads // group.size

    def forward(self, batch: ForwardBatch, pool: Sequence[Tensor]) -> Tensor | None:
        """Write the tokens' KV. Logits [samples, vocabulary] on rank 0, None elsewhere and when nothing is drawn."""
        weights, kernels, eps = self._weights, self._kernels, self._spec.norm_eps
        cos, sin = self._rotary[batch.positions].unbind(1)
        residual = F.embedding(batch.token_ids, weights.embedding)
        normed = kernels.rms_norm(residual, weights.layers[0].attention_norm, eps)
        last = len(weights.layers) - 1
        for index, layer in enumerate(weights.layers):
            q = self._project(layer, normed, cos, sin, batch, pool[index])
            if index == last and not len(batch.sampled):
                return None  # a chunk that draws nothing has done its work: its KV is written
            out = kernels.attention.run(q, pool[index], batch.attention)
            if index == last:  # behind the last attention only the drawn tokens' rows matter
                out, residual = out[batch.sampled], residual[batch.sampled]
            next_norm = weights.final_norm if index == last else weights.layers[index + 1].attention_norm
            normed = self._mix(layer, out, residual, next_norm)
        return self._logits(normed)

    def _project(
        self, layer: LayerWeights, normed: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv: Tensor
    ) -> Tensor:  # [tokens, q_heads, head_dim]
        """Rotated queries; keys and values go to the pool."""
        qkv = layer.qkv(normed).view(normed.shape[0], -1, self._spec.head_dim)
        self._kernels.rope_kv_write(qkv, cos, sin, kv, batch.slots)
        return qkv[:, : self._num_heads]

    def _mix(self, layer: LayerWeights, attended: Tensor, residual: Tensor, next_norm: Tensor) -> Tensor:
        """The layer's second half. Returns the next norm's output; `residual` has grown by both parts."""
        kernels, eps = self._kernels, self._spec.norm_eps
        out = self._group.all_reduce(layer.o(attended))
        normed = kernels.add_rms_norm(out, residual, layer.mlp_norm, eps)
        out = self._group.all_reduce(layer.down(kernels.silu_mul(layer.gate_up(normed))))
        return kernels.add_rms_norm(out, residual, next_norm, eps)

    def _logits(self, normed: Tensor) -> Tensor | None:
        logits = self._group.gather(self._weights.lm_head(normed))
        return None if logits is None else logits[:, : self._spec.vocab_size]
