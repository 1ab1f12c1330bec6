"""What is added to attention's scores: -inf where a query does not see a key, elsewhere nothing or ALiBi's biases.

Part of `paged_attention.py`, which asks once per step for rows that decode, and once per layer for a chunk's tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.kv_gather import Scratch


class AttentionMasks:
    """Owns the tables that tiles are cut from. Not for two threads: a tile's biases live until the next tile's."""

    def __init__(self, variant: AttentionVariant, dtype: torch.dtype, tile: int) -> None:
        """`tile`: how many queries may ask for a mask at once."""
        self._variant = variant
        self._tile = tile
        slopes = variant.alibi_slopes
        self._slopes = (
            None if slopes is None else torch.tensor(slopes)[None, :, None, None]
        )  # [1, q_heads, 1, 1]
        # Biases are fp32: in bf16 distant keys would share theirs with their neighbours.
        self._band = torch.empty(tile, 0, dtype=dtype if slopes is None else torch.float32)
        self._rounded = torch.empty(0)
        self._biases = Scratch(torch.float32)

    def for_rows(self, columns: Sequence[int], keys: slice) -> Tensor | None:
        """Of each row's only query, its column among the keys that are read for it; and the columns that any row sees.

        fp32 [1, rows, 1, keys], with biases [rows or 1, q_heads, keys]. None: there is nothing to add.
        """
        if len(set(columns)) == 1:
            if self._slopes is None:
                return None  # what is read is what all of them see
            columns = columns[:1]
        band = self._band_of(torch.arange(keys.start, keys.stop), torch.tensor(columns)[:, None])
        if self._slopes is None:
            return band[None, :, None]
        if self._variant.alibi_in_bfloat16:
            return self._rounded_until(keys.stop)[0, :, 0, keys] + band[:, None]
        return self._slopes[0, :, 0] * band[:, None]

    def for_tile(self, position: int, num_queries: int) -> Tensor:
        """Queries from `position` on, over the keys from the first that one of them sees to the last.

        [num_queries, keys], with biases [1, q_heads, num_queries, keys]; with three dimensions torch's fused attention
        would leave it to its slow form.
        """
        band = self._cut_band(position - self._variant.first_key(position), num_queries)
        if self._slopes is None:
            return band
        out = self._biases.take((1, self._slopes.shape[1], *band.shape))
        if self._variant.alibi_in_bfloat16:
            return torch.add(self._rounded_until(position + num_queries), band, out=out)
        return torch.mul(self._slopes, band, out=out)

    def _cut_band(self, reach: int, num_queries: int) -> Tensor:  # [num_queries, reach + num_queries]
        """One table serves every tile: one that reaches further back is a slice further left."""
        origin = self._band.shape[1] - self._tile
        if origin < reach:
            origin = 1 << reach.bit_length()
            band = self._band_of(torch.arange(-origin, self._tile), torch.arange(self._tile)[:, None])
            self._band = band.to(self._band.dtype)
        return self._band[:num_queries, origin - reach : origin + num_queries]

    def _band_of(self, keys: Tensor, queries: Tensor) -> Tensor:  # int64 [keys], [queries, 1] -> fp32
        """-inf where a key is not seen, else its distance if slopes are to multiply it, else 0."""
        hidden = keys > queries
        if self._variant.window is not None:
            hidden |= keys <= queries - self._variant.window
        multiplied = self._slopes is not None and not self._variant.alibi_in_bfloat16
        seen = (keys - queries).float() if multiplied else torch.zeros(hidden.shape)
        return seen.masked_fill_(hidden, -torch.inf)

    def _rounded_until(self, end: int) -> Tensor:  # [1, q_heads, 1, end]: of the keys at positions 0 to end
        if self._rounded.shape[-1] < end:
            assert self._slopes is not None, "only biases are rounded"
            positions = torch.arange(1 << end.bit_length()).bfloat16()
            self._rounded = (self._slopes.bfloat16() * positions).float() * self._variant.scale
        return self._rounded[..., :end]
