"""Paged attention against its meaning, odd sizes first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.naive_attention import attend_naively
from kernels.paged_attention import TorchPagedAttention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
NUM_BLOCKS = 96
SHAPES = [(3, 1, 5, 7), (1, 3, 4, 9), (16, 2, 2, 32), (4, 2, 1, 8)]  # block_size, kv_heads, group, head_dim
PLAIN = AttentionVariant(scale=0.4)
SLOPES = tuple(0.7 / (1.3 * index + 1) for index in range(12))
VARIANTS = {
    "plain": PLAIN,
    "window_of_itself": replace(PLAIN, window=1),
    "window_below_a_block": replace(PLAIN, window=2),
    "window": replace(PLAIN, window=8),
    "window_over_the_context": replace(PLAIN, window=1000),
    "softcap": replace(PLAIN, softcap=0.5),
    "alibi": replace(PLAIN, alibi_slopes=SLOPES),
    "falcons_alibi": replace(PLAIN, alibi_slopes=SLOPES, alibi_in_bfloat16=True),
    "window_and_softcap": replace(PLAIN, window=5, softcap=0.5),
    "window_and_alibi": replace(PLAIN, window=9, alibi_slopes=SLOPES),
    "everything": AttentionVariant(0.3, 7, 0.8, SLOPES),
    "falcons_alibi_capped": AttentionVariant(0.3, None, 0.8, SLOPES, alibi_in_bfloat16=True),
}
BATCHES = {
    "one_token": [(0, 1)],
    "decode_equal": [(10, 1), (10, 1), (10, 1)],
    "decode_ragged": [(0, 1), (2, 1), (5, 1), (37, 1), (40, 1)],
    "chunk_from_the_start": [(0, 13)],
    "chunk_behind_a_prefix": [(7, 11)],
    "mixed": [(1, 1), (3, 1), (30, 1), (0, 5), (6, 3), (21, 17)],
}


def variant_for(name: str, num_heads: int) -> AttentionVariant:
    variant = VARIANTS[name]
    return variant if variant.alibi_slopes is None else replace(variant, alibi_slopes=SLOPES[:num_heads])


def block_tables(rows: list[QueryRow], block_size: int, scattered: bool) -> torch.Tensor:
    """Of each row, its blocks: drawn at random, or side by side."""
    order = torch.randperm(NUM_BLOCKS - 1) + 1 if scattered else torch.arange(1, NUM_BLOCKS)
    tables = torch.zeros(len(rows), -(-max(row.num_keys for row in rows) // block_size), dtype=torch.int64)
    for row in rows:
        num_blocks = -(-row.num_keys // block_size)
        tables[row.row, :num_blocks], order = order[:num_blocks], order[num_blocks:]
    return tables


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scattered", (True, False), ids=("scattered", "consecutive"))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda shape: "-".join(f"{n}{v}" for n, v in zip("BHGD", shape, strict=True))
)
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_its_meaning(
    name: str, shape: tuple[int, int, int, int], batch: str, scattered: bool, dtype: torch.dtype
) -> None:
    block_size, kv_heads, group, head_dim = shape
    variant = variant_for(name, kv_heads * group)
    rows = [QueryRow(row, start, count) for row, (start, count) in enumerate(BATCHES[batch])]
    tables = block_tables(rows, block_size, scattered)
    kv = torch.randn(2, kv_heads, NUM_BLOCKS, block_size, head_dim).to(dtype)
    num_tokens = sum(row.num_queries for row in rows)
    q = torch.randn(num_tokens, kv_heads * group, head_dim).to(dtype)
    attention = TorchPagedAttention(variant, dtype, block_size, 2 * kv_heads * head_dim)
    out = attention.run(q, kv, attention.plan(rows, tables))
    expected = attend_naively(variant, q, kv, rows, tables)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("start", (0, 5))
@pytest.mark.parametrize("name", VARIANTS)
def test_a_chunk_longer_than_a_tile_equals_its_meaning(name: str, start: int) -> None:
    row, variant = QueryRow(0, start, 300), variant_for(name, 2)
    kv = torch.randn(2, 1, 20, 16, 8)
    tables = torch.randperm(20)[None]
    q = torch.randn(300, 2, 8)
    attention = TorchPagedAttention(variant, torch.float32, 16, 16)
    out = attention.run(q, kv, attention.plan([row], tables))
    torch.testing.assert_close(out, attend_naively(variant, q, kv, [row], tables), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", (None, 6))
def test_equals_torchs_attention_with_a_mask_spelt_out(window: int | None) -> None:
    variant = AttentionVariant(0.5, window, alibi_slopes=(0.5, 0.3, 0.1))
    tokens, q = torch.arange(23), torch.randn(23, 3, 7)
    kv = torch.randn(2, 3, 6, 4, 7)
    distances = tokens - tokens[:, None]
    hidden = (distances > 0) | (distances <= -(window or 100))
    mask = (torch.tensor([0.5, 0.3, 0.1])[:, None, None] * distances).masked_fill(hidden, -torch.inf)
    k, v = kv.flatten(2, 3)[:, :, :23].unbind()
    expected = F.scaled_dot_product_attention(q.transpose(0, 1), k, v, mask, scale=0.5)
    attention = TorchPagedAttention(variant, torch.float32, 4, 42)
    out = attention.run(q, kv, attention.plan([QueryRow(0, 0, 23)], torch.arange(6)[None]))
    torch.testing.assert_close(out, expected.transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", ([(41, 1)], [(40, 1), (41, 1), (47, 1)], [(41, 9)]), ids=str)
def test_blocks_before_the_window_are_not_read(rows: list[tuple[int, int]]) -> None:
    queries = [QueryRow(row, start, count) for row, (start, count) in enumerate(rows)]
    tables = block_tables(queries, 4, scattered=True)
    attention = TorchPagedAttention(replace(PLAIN, window=10), torch.float32, 4, 16)
    kv = torch.full((2, 1, NUM_BLOCKS, 4, 8), torch.nan)
    kv[:, :, tables[:, 7:].flatten()] = 1.0  # of token 28 on: query 40 sees 31 to 40
    out = attention.run(
        torch.randn(sum(count for _, count in rows), 3, 8), kv, attention.plan(queries, tables)
    )
    assert out.isfinite().all()


class OperatorNames(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.softcap is None])
def test_torchs_fused_attention_computes_whatever_has_no_cap(name: str) -> None:
    rows = [QueryRow(row, start, count) for row, (start, count) in enumerate(BATCHES["mixed"])]
    attention = TorchPagedAttention(variant_for(name, 6), torch.float32, 4, 2 * 3 * 8)
    plan = attention.plan(rows, block_tables(rows, 4, scattered=True))
    with OperatorNames() as recorded:
        attention.run(torch.randn(28, 6, 8), torch.randn(2, 3, NUM_BLOCKS, 4, 8), plan)
    fused = [operator for operator in recorded.names if "flash_attention" in operator]
    assert len(fused) == len(plan.groups) and not any("softmax" in each for each in recorded.names)


def test_one_plan_serves_several_layers() -> None:
    rows = [QueryRow(0, 4, 1), QueryRow(1, 9, 1)]
    tables = torch.randperm(20).view(2, 10)
    attention = TorchPagedAttention(PLAIN, torch.float32, 3, 20)
    plan = attention.plan(rows, tables)
    for _ in range(2):
        kv, q = torch.randn(2, 2, 20, 3, 5), torch.randn(2, 4, 5)
        torch.testing.assert_close(attention.run(q, kv, plan), attend_naively(PLAIN, q, kv, rows, tables))


def test_rows_of_like_length_share_one_call() -> None:
    rows = [QueryRow(row, start, 1) for row, start in enumerate((10, 11, 13, 200, 210))]
    plan = TorchPagedAttention(PLAIN, torch.float32, 4, 20).plan(rows, torch.zeros(5, 64, dtype=torch.int64))
    assert [group.num_rows for group in plan.groups] == [3, 2]


def test_rows_that_see_equally_many_keys_share_one_call_however_long_they_are() -> None:
    rows = [QueryRow(row, start, 1) for row, start in enumerate((20, 90, 200))]
    attention = TorchPagedAttention(replace(PLAIN, window=8), torch.float32, 4, 20)
    assert len(attention.plan(rows, torch.zeros(3, 64, dtype=torch.int64)).groups) == 1


def test_rows_whose_kv_outgrows_the_cache_are_read_one_after_the_other() -> None:
    rows = [QueryRow(row, 200, 1) for row in range(3)]
    plan = TorchPagedAttention(PLAIN, torch.float32, 4, 10_000).plan(
        rows, torch.zeros(3, 64, dtype=torch.int64)
    )
    assert [group.num_rows for group in plan.groups] == [1, 1, 1]
