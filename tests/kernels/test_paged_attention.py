"""Paged attention against its meaning, odd sizes first."""

from __future__ import annotations

import pytest
import torch

from kernels.paged_attention import QueryRow, TorchPagedAttention, attend_naively

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
NUM_BLOCKS = 96
SHAPES = [(3, 1, 5, 7), (1, 3, 4, 9), (16, 2, 2, 32), (4, 2, 1, 8)]  # block_size, kv_heads, group, head_dim
BATCHES = {
    "one_token": [(0, 1)],
    "decode_equal": [(10, 1), (10, 1), (10, 1)],
    "decode_ragged": [(0, 1), (2, 1), (5, 1), (37, 1), (40, 1)],
    "chunk_from_the_start": [(0, 13)],
    "chunk_behind_a_prefix": [(7, 11)],
    "mixed": [(1, 1), (3, 1), (30, 1), (0, 5), (6, 3), (21, 17)],
}


def block_tables(rows: list[QueryRow], block_size: int, scattered: bool) -> torch.Tensor:
    """Of each row, its blocks: drawn at random, or side by side."""
    order = torch.randperm(NUM_BLOCKS - 1) + 1 if scattered else torch.arange(1, NUM_BLOCKS)
    tables = torch.zeros(len(rows), 48, dtype=torch.int64)
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
def test_equals_its_meaning(
    shape: tuple[int, int, int, int], batch: str, scattered: bool, dtype: torch.dtype
) -> None:
    block_size, kv_heads, group, head_dim = shape
    rows = [QueryRow(row, start, count) for row, (start, count) in enumerate(BATCHES[batch])]
    tables = block_tables(rows, block_size, scattered)
    kv = torch.randn(2, kv_heads, NUM_BLOCKS, block_size, head_dim).to(dtype)
    num_tokens = sum(row.num_queries for row in rows)
    q = torch.randn(num_tokens, kv_heads * group, head_dim).to(dtype)
    attention = TorchPagedAttention(dtype, block_size, 2 * kv_heads * head_dim)
    out = attention.run(q, kv, attention.plan(rows, tables))
    expected = attend_naively(q, kv, rows, tables)
    torch.testing.assert_close(out.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_chunk_longer_than_a_tile_equals_its_meaning() -> None:
    row = QueryRow(0, 5, 300)
    kv = torch.randn(2, 1, 20, 16, 8)
    tables = torch.randperm(20)[None]
    q = torch.randn(300, 2, 8)
    attention = TorchPagedAttention(torch.float32, 16, 16)
    out = attention.run(q, kv, attention.plan([row], tables))
    torch.testing.assert_close(out, attend_naively(q, kv, [row], tables), rtol=1e-5, atol=1e-5)


def test_one_plan_serves_several_layers() -> None:
    rows = [QueryRow(0, 4, 1), QueryRow(1, 9, 1)]
    tables = torch.randperm(20).view(2, 10)
    attention = TorchPagedAttention(torch.float32, 3, 20)
    plan = attention.plan(rows, tables)
    for _ in range(2):
        kv, q = torch.randn(2, 2, 20, 3, 5), torch.randn(2, 4, 5)
        torch.testing.assert_close(attention.run(q, kv, plan), attend_naively(q, kv, rows, tables))


def test_rows_of_like_length_share_one_call() -> None:
    rows = [QueryRow(row, start, 1) for row, start in enumerate((10, 11, 13, 200, 210))]
    plan = TorchPagedAttention(torch.float32, 4, 20).plan(rows, torch.zeros(5, 64, dtype=torch.int64))
    assert [group.num_rows for group in plan.groups] == [3, 2]


def test_rows_whose_kv_outgrows_the_cache_are_read_one_after_the_other() -> None:
    rows = [QueryRow(row, 200, 1) for row in range(3)]
    plan = TorchPagedAttention(torch.float32, 4, 10_000).plan(rows, torch.zeros(3, 64, dtype=torch.int64))
    assert [group.num_rows for group in plan.groups] == [1, 1, 1]
