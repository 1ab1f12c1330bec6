"""A model's norms as callables over their weights: built once by `decoder_layers.py`, called in every step.

Each has two ways in: over a tensor, and over the sum of a part's output and the residual stream, which grows by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.dispatch import Kernels
from workers.model.model_spec import NormKind, NormSpec
from workers.model.weights.load_weights import NormWeights


class Norm(Protocol):
    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden] -> the same
        ...

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` += x, in place. Returns its norm."""
        ...


class RmsNorm:
    __slots__ = ("_add_rms_norm", "_eps", "_rms_norm", "_weight")

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels) -> None:
        self._weight = weight
        self._eps = eps
        self._rms_norm = kernels.rms_norm
        self._add_rms_norm = kernels.add_rms_norm

    def __call__(self, x: Tensor) -> Tensor:
        return self._rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return self._add_rms_norm(x, residual, self._weight, self._eps)


class LayerNorm:
    __slots__ = ("_add_layer_norm", "_bias", "_eps", "_layer_norm", "_weight")

    def __init__(self, weights: NormWeights, eps: float, kernels: Kernels) -> None:
        self._weight = weights.weight
        self._bias = weights.bias
        self._eps = eps
        self._layer_norm = kernels.layer_norm
        self._add_layer_norm = kernels.add_layer_norm

    def __call__(self, x: Tensor) -> Tensor:
        return self._layer_norm(x, self._weight, self._bias, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return self._add_layer_norm(x, residual, self._weight, self._bias, self._eps)


class NoNorm:
    """Where a model has none. What it returns is the residual stream itself."""

    __slots__ = ()

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual.add_(x)


def make_norm(spec: NormSpec, weights: NormWeights | None, kernels: Kernels) -> Norm:
    if weights is None:
        return NoNorm()
    if spec.kind is NormKind.LAYER:
        return LayerNorm(weights, spec.eps, kernels)
    return RmsNorm(weights.weight, spec.eps, kernels)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Of each query and key by itself. `kernels.rope_kv_write` computes it."""

    weight: Tensor  # [q_heads + kv_heads, head_dim]
    eps: float

    @classmethod
    def of(cls, q: NormWeights, k: NormWeights, num_heads: int, num_kv_heads: int, eps: float) -> HeadNorm:
        """The heads are this rank's."""
        return cls(torch.cat([q.weight.expand(num_heads, -1), k.weight.expand(num_kv_heads, -1)]), eps)
