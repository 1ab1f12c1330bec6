"""A pool of fp8 on a CPU: what is written into it, and what attention reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.copy_blocks import copy_blocks
from kernels.deterministic_attention import DeterministicAttention
from kernels.kv_gather import Fp8Reader
from kernels.naive_attention import attend_naively
from kernels.paged_attention import TorchPagedAttention
from kernels.rope_kv_write import kv_write_fp8, rope_kv_write, rope_kv_write_fp8

FP8 = torch.float8_e4m3fn
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # tolerances
KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 2, 3, 16, 4, 40
SCALES = torch.tensor([[0.3, 0.01], [1.7, 0.2]])  # of keys and of values
VARIANTS = (
    AttentionVariant(0.3),
    AttentionVariant(0.3, window=9, softcap=5.0, alibi_slopes=(0.4, 0.3, 0.2) * 2),
)


def some_pool() -> Tensor:
    return (torch.randn(2, KV_HEADS, NUM_BLOCKS, BLOCK_SIZE, HEAD_DIM) * 3).to(FP8)


def every_number(dtype: torch.dtype) -> Tensor:
    """Of fp8, as torch converts them."""
    return torch.arange(256, dtype=torch.uint8).view(FP8).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", (TorchPagedAttention, DeterministicAttention))
@pytest.mark.parametrize("variant", VARIANTS, ids=("plain", "everything"))
def test_attention_equals_its_meaning_over_the_numbers_that_are_stored(
    variant: AttentionVariant, kind: type, dtype: torch.dtype
) -> None:
    rows = [QueryRow(0, 5, 1), QueryRow(1, 21, 1), QueryRow(2, 0, 7), QueryRow(3, 14, 5)]
    tables = (torch.randperm(NUM_BLOCKS - 1) + 1)[:24].view(4, 6)
    tables[2] = torch.arange(30, 36)  # side by side
    kv, q = some_pool(), torch.randn(14, KV_HEADS * GROUP, HEAD_DIM).to(dtype)
    attention = kind(variant, dtype, BLOCK_SIZE, 2 * KV_HEADS * HEAD_DIM, fp8_kv=True)
    out = attention.run(q, kv, attention.plan(rows, tables))
    expected = attend_naively(variant, q, kv, rows, tables)
    torch.testing.assert_close(out.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", (TorchPagedAttention, DeterministicAttention))
def test_what_is_read_is_multiplied_with_its_heads_scales(kind: type, dtype: torch.dtype) -> None:
    rows, tables = [QueryRow(0, 21, 1), QueryRow(1, 14, 5)], torch.arange(1, 13).view(2, 6)
    tables[0] = tables[0].flip(0)  # one row is gathered, and the other lies side by side
    kv, q, scales = some_pool(), torch.randn(6, KV_HEADS * GROUP, HEAD_DIM).to(dtype), SCALES
    attention, before = kind(VARIANTS[0], dtype, BLOCK_SIZE, 2 * KV_HEADS * HEAD_DIM, fp8_kv=True), kv.clone()
    out = attention.run(q, kv, attention.plan(rows, tables), scales)
    meant = kv.float() * scales[:, :, None, None, None]
    expected = attend_naively(VARIANTS[0], q, meant, rows, tables)
    torch.testing.assert_close(out.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    assert torch.equal(kv.view(torch.uint8), before.view(torch.uint8))


def test_what_is_written_is_divided_by_its_heads_scales() -> None:
    qkv, kv = torch.randn(1, 3 + 2 * KV_HEADS, HEAD_DIM) * 5, some_pool()
    kv_write_fp8(qkv, kv, torch.tensor([6]), scales=SCALES)
    new = qkv[0, 3:].view(2, KV_HEADS, HEAD_DIM) / SCALES[:, :, None]
    assert torch.equal(kv[:, :, 1, 2].float(), new.clamp(-448, 448).to(FP8).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_but_nan_is_read_as_torch_converts_it(dtype: torch.dtype) -> None:
    kv = torch.arange(256, dtype=torch.uint8).view(FP8).view(2, 2, 4, 4, 4)
    found = Fp8Reader(dtype).gather(kv, torch.arange(4)).flatten()
    expected = every_number(dtype)
    real = ~expected.isnan()
    assert real.sum() == 254
    assert torch.equal(found[real], expected[real])


def test_what_is_written_is_rounded_to_the_nearest_number() -> None:
    qkv, kv = torch.randn(5, 3 + 2 * KV_HEADS, HEAD_DIM) * 5, some_pool()
    slots = torch.tensor([4, 150, 9, 11, 77])
    kv_write_fp8(qkv, kv, slots)
    stored = kv.flatten(2, 3)[:, :, slots].float().permute(2, 0, 1, 3)  # [tokens, 2, kv_heads, head_dim]
    new = qkv[:, 3:].view(5, 2, KV_HEADS, HEAD_DIM)
    numbers = every_number(torch.float32)
    nearest = (new[..., None] - numbers[~numbers.isnan()]).abs().amin(-1)
    assert torch.equal((stored - new).abs(), nearest)


def test_what_is_too_large_becomes_the_largest_number() -> None:
    qkv, kv = torch.randn(1, 1 + 2 * KV_HEADS, HEAD_DIM), some_pool()
    qkv[0, 1, :3] = torch.tensor([1e9, -torch.inf, 500.0])
    kv_write_fp8(qkv, kv, torch.tensor([3]))
    assert kv[0, 0, 0, 3, :3].tolist() == [448.0, -448.0, 448.0]


def test_queries_and_keys_turn_as_they_do_elsewhere() -> None:
    turned = torch.randn(3, 3 + 2 * KV_HEADS, HEAD_DIM)
    same = turned.clone()
    cos, sin = torch.randn(2, 3, 1, HEAD_DIM - 4)
    wide, slots = torch.zeros(2, KV_HEADS, 2, BLOCK_SIZE, HEAD_DIM), torch.tensor([1, 6, 4])
    stored = wide.to(FP8)
    rope_kv_write(same, cos, sin, wide, slots)
    rope_kv_write_fp8(turned, cos, sin, stored, slots)
    assert torch.equal(turned, same)
    assert torch.equal(stored.float(), wide.to(FP8).float())


@pytest.mark.parametrize("dtype", (FP8, torch.bfloat16, torch.float32), ids=str)
def test_blocks_are_copied_bit_by_bit(dtype: torch.dtype) -> None:
    bits = torch.randint(0, 256, (2, 3, 9, 5, 4 * dtype.itemsize), dtype=torch.uint8)
    kv, before = bits.view(dtype), bits.clone()
    copy_blocks(kv, torch.tensor([1, 2, 8]), torch.tensor([2, 3, 5]))
    before[:, :, [2, 3, 5]] = before[:, :, [1, 2, 8]]
    assert torch.equal(bits, before)
