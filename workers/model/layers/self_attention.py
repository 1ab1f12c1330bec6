"""A layer's attention on one rank's heads, up to the output projection. Built by `decoder_layers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from kernels.dispatch import Kernels
from kernels.linear import Linear
from workers.model.layers.norms import HeadNorm


class SelfAttention:
    __slots__ = (
        "_attend",
        "_clip",
        "_head_dim",
        "_kv_write",
        "_num_heads",
        "_qkv",
        "_rope_kv_write",
        "_table",
        "_variant",
    )

    def __init__(
        self,
        qkv: Linear,
        clip: float | None,
        head_norm: HeadNorm | None,
        table: int | None,
        variant: int,
        num_heads: int,
        head_dim: int,
        kernels: Kernels,
        kv_scales: Tensor | None = None,  # [2, kv_heads] fp32, of an fp8 pool
    ) -> None:
        """`clip` bounds queries, keys and values. `table`: of the rotary ones, None where positions are not rotary.
        `variant`: of the kernels' attentions."""
        assert head_norm is None or table is not None, "heads are normed where they are rotated"
        self._qkv = qkv
        self._clip = clip
        self._table = table
        self._variant = variant
        self._num_heads = num_heads
        self._head_dim = head_dim
        self._attend = kernels.attentions[variant].run
        self._rope_kv_write = kernels.rope_kv_write
        self._kv_write = kernels.kv_write
        if kv_scales is not None:
            self._attend = partial(self._attend, kv_scales=kv_scales)
            self._rope_kv_write = partial(self._rope_kv_write, scales=kv_scales)
            self._kv_write = partial(self._kv_write, scales=kv_scales)
        if head_norm is not None:
            self._rope_kv_write = partial(self._rope_kv_write, norm=head_norm.weight, eps=head_norm.eps)

    def project(
        self,
        normed: Tensor,  # [tokens, hidden]
        turns: Sequence[tuple[Tensor, ...]],  # (cos, sin) of every rotary table, each [tokens, 1, dims]
        slots: Tensor,  # [tokens] int64
        kv: Tensor,  # the layer's pool, see `kernels.dispatch.kv_shape`; written
    ) -> Tensor:  # [tokens, q_heads, head_dim]
        """Queries; keys and values go to the pool."""
        qkv = self._qkv(normed).view(normed.shape[0], -1, self._head_dim)
        if self._clip is not None:
            qkv.clamp_(-self._clip, self._clip)
        if self._table is None:
            self._kv_write(qkv, kv, slots)
        else:
            cos, sin = turns[self._table]
            self._rope_kv_write(qkv, cos, sin, kv, slots)
        return qkv[:, : self._num_heads]

    def attend(self, q: Tensor, kv: Tensor, plans: Sequence[Any]) -> Tensor:  # [tokens, q_heads · head_dim]
        return self._attend(q, kv, plans[self._variant])
