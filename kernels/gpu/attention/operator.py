"""`PagedAttention` on a GPU: one variant, planned once per step and run for every layer that has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.gpu.attention.combine import Partials
from kernels.gpu.attention.paged_attention import paged_attention, slopes_of
from kernels.gpu.attention.plan import AttentionLaunch, AttentionPlanner, QueryColumns


@dataclass(frozen=True, slots=True)
class DeviceLaunch:
    launch: AttentionLaunch
    tiles: Tensor  # [TILE_NUMBERS, num_tiles or more] int32, on the device


@dataclass(frozen=True, slots=True)
class TritonAttentionPlan:
    """The same for every variant. A captured graph needs one whose tensors outlive it."""

    launches: tuple[DeviceLaunch, ...]
    block_tables: Tensor  # [rows, blocks] int32, on the device
    # [tokens or more, q_heads · head_dim], written by each attention in turn: what stands where no tile is stays as it
    # is, while memory of each run's own would hold anything there.
    out: Tensor | None = None


class TritonPagedAttention:
    """Owns its slopes; the planner and the scratch are shared by all variants of a runner. Not for two streams."""

    def __init__(
        self,
        variant: AttentionVariant,
        planner: AttentionPlanner,
        partials: Partials,
    ) -> None:
        assert variant.scale > 0, f"a scale of {variant.scale} would turn the largest score into the smallest"
        assert len(partials.sums) >= planner.num_slots, "the planner counts on more slots than there are"
        self._variant = variant
        self._planner = planner
        self._partials = partials
        self._slopes = slopes_of(variant, partials.sums.device)

    def plan(self, rows: Sequence[QueryRow], block_tables: Tensor) -> TritonAttentionPlan:
        """Uploads the tiles by themselves. A runner that uploads everything at once asks the planner instead."""
        launches = [
            DeviceLaunch(planned.launch, torch.from_numpy(planned.tiles).to(block_tables.device))
            for planned in self._planner.plan(QueryColumns.of(rows))
        ]
        return TritonAttentionPlan(tuple(launches), block_tables)

    def run(
        self,
        q: Tensor,  # [tokens, q_heads, head_dim]
        kv: Tensor,  # [2, num_blocks, kv_heads, block_size, head_dim]
        plan: TritonAttentionPlan,
        kv_scales: Tensor | None = None,  # [2, kv_heads] fp32
    ) -> Tensor:  # [tokens, q_heads · head_dim]
        own = torch.empty_like(q, memory_format=torch.contiguous_format) if plan.out is None else plan.out
        out = own[: len(q)]
        for each in plan.launches:
            paged_attention(
                self._variant,
                self._slopes,
                q,
                kv,
                plan.block_tables,
                each.tiles,
                each.launch,
                out.view(q.shape),
                self._partials,
                kv_scales,
            )
        return out.view(len(q), -1)
