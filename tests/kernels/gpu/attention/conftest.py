"""Steps to attend to: rows whose keys and values lie scattered in a pool that is NaN wherever nothing was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.naive_attention import attend_naively

if find_spec("triton") is not None:
    from kernels.gpu.attention.combine import Partials
    from kernels.gpu.attention.operator import TritonPagedAttention
    from kernels.gpu.attention.plan import AttentionPlanner, AttentionShape
else:
    collect_ignore_glob = ["test_*.py"]

NUM_SLOTS = 600


@dataclass(frozen=True, slots=True)
class AttentionStep:
    rows: list[QueryRow]
    q: Tensor  # [tokens, q_heads, head_dim]
    kv: Tensor  # [2, blocks, kv_heads, block_size, head_dim]
    tables: Tensor  # [rows, blocks] int32

    def meaning(self, variant: AttentionVariant, kv_scales: Tensor | None = None) -> Tensor:
        kv = self.kv.float()
        if kv_scales is not None:
            kv = kv * kv_scales[:, None, :, None, None]
        tables = self.tables.long().cpu()
        return attend_naively(variant, self.q.cpu(), kv.transpose(1, 2).cpu(), self.rows, tables)

    def planner(
        self,
        decode: AttentionShape | None = None,
        prefill: AttentionShape | None = None,
        num_slots: int = NUM_SLOTS,
        enough_programs: int = 0,
    ) -> AttentionPlanner:
        """Small tiles by default, and splits of a few of them."""
        kv_heads = self.kv.shape[2]
        return AttentionPlanner(
            group=self.q.shape[1] // kv_heads,
            kv_heads=kv_heads,
            decode=decode or AttentionShape(16, 32, 4, 3, 64),
            prefill=prefill or AttentionShape(64, 32, 4, 3, 64),
            num_slots=num_slots,
            enough_programs=enough_programs,
        )

    def compute(
        self,
        variant: AttentionVariant,
        planner: AttentionPlanner | None = None,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        planner = planner or self.planner()
        num_heads, head_dim = self.q.shape[1:]
        partials = Partials.allocate(NUM_SLOTS, num_heads, head_dim, self.q.device)
        partials.sums.fill_(torch.nan)
        attention = TritonPagedAttention(variant, planner, partials)
        out = torch.full(
            (len(self.q), num_heads * head_dim), torch.nan, dtype=self.q.dtype, device=self.q.device
        )
        plan = attention.plan(self.rows, self.tables)
        return attention.run(self.q, self.kv, replace(plan, out=out), kv_scales)

    def part(self, *rows: QueryRow) -> AttentionStep:
        """The queries of these rows alone, each a part of a row of this step."""
        begins, total = {}, 0
        for row in self.rows:
            begins[row.row] = total - row.start
            total += row.num_queries
        queries = [self.q[begins[row.row] + row.start :][: row.num_queries] for row in rows]
        return AttentionStep(list(rows), torch.cat(queries), self.kv, self.tables)


MakeStep = Callable[..., AttentionStep]


@pytest.fixture
def make_step(device: torch.device) -> MakeStep:
    def make(
        shape: tuple[int, int, int, int],  # block_size, kv_heads, group, head_dim
        batch: Sequence[tuple[int, int]],  # of each row, the position of its first query, and its queries
        dtype: torch.dtype = torch.float32,
    ) -> AttentionStep:
        block_size, kv_heads, group, head_dim = shape
        rows = [QueryRow(row, start, count) for row, (start, count) in enumerate(batch)]
        num_blocks = [-(-row.num_keys // block_size) for row in rows]
        kv = torch.full((2, sum(num_blocks) + 1, kv_heads, block_size, head_dim), torch.nan)
        free = torch.randperm(sum(num_blocks)) + 1  # block 0 is the null block
        tables = torch.zeros(len(rows), max(num_blocks), dtype=torch.int32)
        for row, blocks in zip(rows, torch.split(free, num_blocks), strict=True):
            tables[row.row, : len(blocks)] = blocks
            tokens = torch.arange(row.num_keys)
            written = torch.randn(len(tokens), 2, kv_heads, head_dim)
            kv[:, blocks[tokens // block_size], :, tokens % block_size] = written
        num_tokens, num_heads = sum(row.num_queries for row in rows), kv_heads * group
        q = torch.randn(num_tokens, num_heads, head_dim)
        return AttentionStep(rows, q.to(device, dtype), kv.to(device, dtype), tables.to(device))

    return make
