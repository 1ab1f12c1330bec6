"""Attention of a few queries over tiles of keys. Part of `deterministic_attention.py`, which cuts both.

    m = max over all tiles of score(q, K_j)          l = Σ_j Σ exp(score(q, K_j) - m)          out = (Σ_j P_j V_j) / l

Everything is fp32, products are of verified shapes, and the sums over tiles go from the first to the last. A tile that
a query does not see adds zeros to both sums, so a query's bits do not depend on who is computed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.deterministic_products import FixedProducts


@dataclass(frozen=True, slots=True)
class KeyTiles:
    """Tiles that are computed by one call: all that are read, or, where queries see a part of them, a single one."""

    first: int
    last: int
    mask: Tensor | None  # [rows, tiles, 1, queries, keys], -inf where a key is not seen; None: all keys are


class TileAttention:
    """Of one variant, for any sizes of heads and tiles."""

    def __init__(self, variant: AttentionVariant) -> None:
        self._variant = variant
        self._slopes = None if variant.alibi_slopes is None else torch.tensor(variant.alibi_slopes)
        self._products: dict[tuple[int, int], tuple[FixedProducts, FixedProducts]] = {}

    def attend(
        self,
        q: Tensor,  # [kv_heads, rows, group, queries, head_dim] fp32, scaled
        kv: Tensor,  # [2, kv_heads, rows, tiles, keys, head_dim] fp32, each tile at an aligned start
        positions: Tensor,  # [rows, queries] fp32, of the queries
        first_keys: Tensor,  # [rows] fp32, positions of the first keys
        parts: Sequence[KeyTiles],
    ) -> Tensor:  # [kv_heads, rows, group, queries, head_dim]
        scores_of, outputs_of = self._products_of(*kv.shape[4:])
        (k, v), lines = kv.unbind(), q.contiguous()[:, :, None]
        scores = []  # of each part [kv_heads, rows, tiles, group, queries, keys]
        for part in parts:
            queries = lines.expand(-1, -1, part.last - part.first, -1, -1, -1)
            score = _multiply(scores_of, queries, k[:, :, part.first : part.last].transpose(-1, -2))
            self._shape(score, positions, first_keys + part.first * kv.shape[4])
            scores.append(score if part.mask is None else score.add_(part.mask))
        maximum = reduce(torch.maximum, (score.amax((2, 5), keepdim=True) for score in scores))
        sums: list[Tensor] = []  # of each tile
        outputs: list[Tensor] = []
        for part, score in zip(parts, scores, strict=True):
            weights = score.sub_(maximum).exp_()
            sums += weights.sum(-1, keepdim=True).unbind(2)
            outputs += _multiply(outputs_of, weights, v[:, :, part.first : part.last]).unbind(2)
        return reduce(torch.add, outputs) / reduce(torch.add, sums)

    def _shape(self, scores: Tensor, positions: Tensor, first_keys: Tensor) -> None:
        """What the variant makes of the bare products [kv_heads, rows, tiles, group, queries, keys], in place."""
        cap = self._variant.softcap
        if cap is not None:
            scores.div_(cap).tanh_().mul_(cap)
        if self._slopes is None:
            return
        kv_heads, num_rows, num_tiles, group, _, num_keys = scores.shape
        slopes = self._slopes.view(kv_heads, 1, 1, group, 1, 1)
        keys = (first_keys[:, None] + torch.arange(num_tiles * num_keys)).view(
            num_rows, num_tiles, 1, 1, num_keys
        )
        if self._variant.alibi_in_bfloat16:
            scores.add_((slopes.bfloat16() * keys.bfloat16()).float().mul_(self._variant.scale))
        else:
            scores.add_(slopes * (keys - positions[:, None, None, :, None]))

    def _products_of(self, num_keys: int, head_dim: int) -> tuple[FixedProducts, FixedProducts]:
        """Of scores and of outputs."""
        found = self._products.get((num_keys, head_dim))
        if found is None:
            scores = FixedProducts(head_dim, num_keys, transposed=True)
            outputs = FixedProducts(num_keys, head_dim, transposed=False)
            found = self._products[num_keys, head_dim] = scores, outputs
        return found


def _multiply(products: FixedProducts, a: Tensor, b: Tensor) -> Tensor:
    """[kv_heads, rows, tiles, group, queries, inner] by [kv_heads, rows, tiles, inner, columns], not copied."""
    lines = a.flatten(3, 4).flatten(0, 2)
    return products.multiply(lines, b.flatten(0, 2)).view(*a.shape[:5], b.shape[-1])
