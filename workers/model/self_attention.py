"""A layer's attention on one rank's heads, up to the output projection. Built by `decoder_layers.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from kernels.dispatch import Kernels
from kernels.linear import Linear

Prepare = Callable[[Tensor], object]  # changes [tokens, q_heads + 2 · kv_heads, head_dim] in place


class SelfAttention:
    __slots__ = (
        "_attention",
        "_head_dim",
        "_kv_write",
        "_num_heads",
        "_prepares",
        "_qkv",
        "_rope_kv_write",
        "_table",
        "_variant",
    )

    def __init__(
        self,
        qkv: Linear,
        prepares: Sequence[Prepare],
        table: int | None,
        variant: int,
        num_heads: int,
        head_dim: int,
        kernels: Kernels,
    ) -> None:
        """`table`: of the rotary ones, None where positions are not rotary. `variant`: of the kernels' attentions."""
        self._qkv = qkv
        self._prepares = tuple(prepares)  # most models have none
        self._table = table
        self._variant = variant
        self._num_heads = num_heads
        self._head_dim = head_dim
        self._attention = kernels.attentions[variant]
        self._rope_kv_write = kernels.rope_kv_write
        self._kv_write = kernels.kv_write

    def project(
        self,
        normed: Tensor,  # [tokens, hidden]
        turns: Sequence[tuple[Tensor, ...]],  # (cos, sin) of every rotary table, each [tokens, 1, dims]
        slots: Tensor,  # [tokens] int64
        kv: Tensor,  # the layer's pool, see `kernels.dispatch.kv_shape`; written
    ) -> Tensor:  # [tokens, q_heads, head_dim]
        """Queries; keys and values go to the pool."""
        qkv = self._qkv(normed).view(normed.shape[0], -1, self._head_dim)
        for prepare in self._prepares:
            prepare(qkv)
        if self._table is None:
            self._kv_write(qkv, kv, slots)
        else:
            cos, sin = turns[self._table]
            self._rope_kv_write(qkv, cos, sin, kv, slots)
        return qkv[:, : self._num_heads]

    def attend(self, q: Tensor, kv: Tensor, plans: Sequence[Any]) -> Tensor:  # [tokens, q_heads · head_dim]
        return self._attention.run(q, kv, plans[self._variant])


class Clip:
    """Clamps queries, keys and values."""

    __slots__ = ("_bound",)

    def __init__(self, bound: float) -> None:
        self._bound = bound

    def __call__(self, qkv: Tensor) -> None:
        qkv.clamp_(-self._bound, self._bound)
