"""The meaning of attention over paged keys and values, token by token, in fp32. Tests hold the fast forms to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow


def attend_naively(
    variant: AttentionVariant,
    q: Tensor,  # [tokens, q_heads, head_dim]
    kv: Tensor,  # [2, kv_heads, num_blocks, block_size, head_dim]
    rows: Sequence[QueryRow],
    block_tables: Tensor,  # [rows, blocks] int64
) -> Tensor:  # [tokens, q_heads · head_dim] fp32
    k_pool, v_pool = kv.float().flatten(2, 3).unbind()
    kv_heads, _, block_size = kv.shape[1:4]
    out: list[Tensor] = []
    for row in rows:
        for position in range(row.start, row.num_keys):
            seen = torch.arange(variant.first_key(position), position + 1)
            slots = block_tables[row.row, seen // block_size] * block_size + seen % block_size
            query = q[len(out)].float().view(kv_heads, -1, q.shape[-1])  # [kv_heads, group, head_dim]
            scores = torch.einsum("hgd,htd->hgt", query, k_pool[:, slots]) * variant.scale
            if variant.softcap is not None:
                scores = variant.softcap * torch.tanh(scores / variant.softcap)
            if variant.alibi_slopes is not None:
                scores += _biases(variant, seen, position).view(kv_heads, -1, len(seen))
            out.append(torch.einsum("hgt,htd->hgd", scores.softmax(-1), v_pool[:, slots]).flatten())
    return torch.stack(out)


def _biases(variant: AttentionVariant, seen: Tensor, position: int) -> Tensor:  # [keys] -> [q_heads, keys]
    slopes = torch.tensor(variant.alibi_slopes)[:, None]
    if not variant.alibi_in_bfloat16:
        return slopes * (seen - position)
    return (slopes.bfloat16() * seen.bfloat16()).float() * variant.scale
