"""The orders in which a layer adds its two parts to the residual stream, one class each, chosen once for a model.

Each takes what attention found, its own input and the residual stream, and returns the next layer's input with the
stream, which has grown by both parts. The formulas stand at `ResidualOrder`. Sums over ranks come before norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.linear import Linear
from workers.model.layers.norms import Norm


class Mix(Protocol):
    def __call__(
        self,
        attended: Tensor,  # [tokens, q_heads · head_dim]
        normed: Tensor,  # [tokens, hidden]: what the layer read
        residual: Tensor,  # [tokens, hidden], may be changed
    ) -> tuple[Tensor, Tensor]:  # the next layer's input, the residual stream
        ...


@dataclass(frozen=True, slots=True)
class LayerParts:
    """This rank's part of a layer behind its attention, and the norm of whatever comes next."""

    o: Linear
    attention_norm: Norm
    attention_post_norm: Norm
    mlp_norm: Norm
    mlp: Linear
    mlp_post_norm: Norm
    next_norm: Norm
    all_reduce: Callable[[Tensor], Tensor]


class NormBefore:
    __slots__ = ("_all_reduce", "_mlp", "_mlp_norm", "_next_norm", "_o")

    def __init__(self, parts: LayerParts) -> None:
        self._o = parts.o
        self._mlp_norm = parts.mlp_norm
        self._mlp = parts.mlp
        self._next_norm = parts.next_norm
        self._all_reduce = parts.all_reduce

    def __call__(self, attended: Tensor, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        normed = self._mlp_norm.add(self._all_reduce(self._o(attended)), residual)
        return self._next_norm.add(self._all_reduce(self._mlp(normed)), residual), residual


class NormAfter:
    __slots__ = ("_parts",)

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts

    def __call__(self, attended: Tensor, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._parts
        inner = parts.attention_norm.add(parts.all_reduce(parts.o(attended)), residual)
        outer = parts.mlp_norm.add(parts.all_reduce(parts.mlp(inner)), inner)
        return parts.next_norm(outer), outer


class NormAround:
    __slots__ = ("_parts",)

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts

    def __call__(self, attended: Tensor, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._parts
        attended = parts.attention_post_norm(parts.all_reduce(parts.o(attended)))
        out = parts.all_reduce(parts.mlp(parts.mlp_norm.add(attended, residual)))
        return parts.next_norm.add(parts.mlp_post_norm(out), residual), residual


class Parallel:
    __slots__ = ("_parts",)

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts

    def __call__(self, attended: Tensor, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._parts
        out = parts.o(attended).add_(parts.mlp(parts.mlp_norm(residual)))
        return parts.next_norm.add(parts.all_reduce(out), residual), residual


class ParallelOneNorm:
    __slots__ = ("_parts",)

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts

    def __call__(self, attended: Tensor, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._parts
        out = parts.o(attended).add_(parts.mlp(normed))
        return parts.next_norm.add(parts.all_reduce(out), residual), residual
