"""Scores, softmax and their product with the values, over keys and values that lie ready. Part of `paged_attention.py`.

torch's fused attention does what it can do; a cap on the scores it cannot, so that they are written out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.kv_gather import Scratch


class FusedProducts:
    """torch's fused attention, in the model's dtype."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        self._scale = scale
        self._widened = Scratch(torch.float32)
        # Without AMX, torch's fused attention over bf16 is slow for a single query row per head: 680 µs where the same
        # in fp32 takes 175 with the conversion (12 heads of 64, 512 keys). Plain products would be faster still, but
        # oneDNN compiles them anew for every length, at a millisecond each.
        self._widens = dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported()

    def of_rows(
        self,
        q: Tensor,  # [kv_heads, rows, group, head_dim]
        kv: Tensor,  # [2, kv_heads, rows, keys, head_dim]
        mask: Tensor | None,  # broadcasts to [kv_heads, rows, group, keys]
    ) -> Tensor:  # [kv_heads, rows, group, head_dim]
        if self._widens and q.shape[2] == 1:
            q, kv = q.float(), self._widened.take(kv.shape).copy_(kv)
        k, v = kv.unbind()
        return F.scaled_dot_product_attention(q, k, v, mask, scale=self._scale)

    def of_tile(
        self,
        q: Tensor,  # [1, q_heads, queries, head_dim]
        kv: Tensor,  # [2, kv_heads, 1, keys, head_dim]
        mask: Tensor
        | None,  # [queries, keys] or [q_heads, queries, keys]; None: causal from the first key on
    ) -> Tensor:  # [1, q_heads, queries, head_dim]
        k, v = kv.transpose(1, 2).unbind()
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=self._scale, enable_gqa=True
        )


class CappedProducts:
    """The same with score = cap · tanh(score / cap), product by product in fp32."""

    def __init__(self, scale: float, cap: float) -> None:
        self._scale = scale
        self._cap = cap
        self._widened = Scratch(torch.float32)

    def of_rows(self, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        k, v = self._widen(kv).unbind()
        scores = self._scores(q, k)
        if mask is not None:
            scores.add_(mask)
        return scores.softmax(-1) @ v

    def of_tile(self, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None, "written out scores know no causality of their own"
        k, v = self._widen(kv).squeeze(2).unbind()
        # The queries of the heads that share a KV head stand one below the other: one product per KV head.
        scores = self._scores(q.reshape(len(k), -1, q.shape[-1]), k)
        scores.view(1, -1, *mask.shape[-2:]).add_(mask)
        return (scores.softmax(-1) @ v).view(q.shape).to(q.dtype)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q.float() @ k.transpose(-1, -2)
        return scores.mul_(self._scale / self._cap).tanh_().mul_(self._cap)

    def _widen(self, kv: Tensor) -> Tensor:
        return kv if kv.dtype == torch.float32 else self._widened.take(kv.shape).copy_(kv)


AttentionProducts = FusedProducts | CappedProducts


def products_of(variant: AttentionVariant, dtype: torch.dtype) -> AttentionProducts:
    if variant.softcap is None:
        return FusedProducts(variant.scale, dtype)
    return CappedProducts(variant.scale, variant.softcap)
