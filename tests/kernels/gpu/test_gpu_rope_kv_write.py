"""Norm, rotation and the write to the pool in one launch, against what they mean one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import rope_kv_write as meant
from kernels.add_rms_norm import rms_norm_heads
from kernels.gpu.rope_kv_write import kv_write, rope_kv_write

AssertClose = Callable[[Tensor, Tensor], None]
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    q_heads: int
    kv_heads: int
    head_dim: int
    dims: int
    block_size: int
    num_tokens: int = 5

    def __str__(self) -> str:
        return f"q{self.q_heads}-kv{self.kv_heads}-d{self.head_dim}-turn{self.dims}-block{self.block_size}"


CASES = pytest.mark.parametrize(
    "case",
    (
        Case(3, 1, 6, 6, 3),
        Case(7, 7, 80, 32, 16),
        Case(4, 2, 64, 64, 16),
        Case(14, 2, 96, 24, 5),
        Case(40, 8, 128, 128, 64),
    ),
    ids=str,
)


def inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A packed projection whose tokens lie apart, cosines and sines."""
    heads = case.q_heads + 2 * case.kv_heads
    wide = torch.randn(case.num_tokens, heads * case.head_dim + 5).to(device, dtype)
    qkv = wide[:, : heads * case.head_dim].unflatten(1, (heads, case.head_dim))
    angles = torch.randn(case.num_tokens, 1, case.dims // 2)
    turns = torch.stack([angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)], 1)
    cos, sin = turns.to(device, dtype).unbind(1)  # as a table of both is read
    return qkv, cos, sin


def empty_pool(case: Case, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((2, 4, case.kv_heads, case.block_size, case.head_dim), torch.nan, device=device).to(
        dtype
    )


def some_slots(case: Case, device: torch.device) -> Tensor:
    """The second token is padding; no other goes to the null block."""
    slots = case.block_size + torch.randperm(3 * case.block_size)[: case.num_tokens]
    slots[1] = -1
    return slots.to(device)


def assert_written(
    qkv: Tensor, kv: Tensor, slots: Tensor, meaning: Tensor, assert_close: AssertClose
) -> None:
    """`meaning`: [tokens, heads, head_dim] fp32, queries, keys and values as they should now be."""
    q_heads, real = qkv.shape[1] - 2 * kv.shape[2], slots >= 0
    stored = kv.transpose(2, 3).flatten(1, 2)  # [2, slots, kv_heads, head_dim]
    keys_and_values = stored[:, slots[real]].transpose(0, 1).flatten(1, 2)
    assert_close(qkv[real, :q_heads].cpu(), meaning[real, :q_heads].cpu())
    assert_close(keys_and_values.cpu(), meaning[real, q_heads:].cpu())
    others = torch.ones(stored.shape[1], dtype=torch.bool)
    others[slots[real].cpu()] = False
    assert stored[:, others.to(kv.device)].isnan().all()


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> Tensor:
    """By the plain operator, with a pool that nobody looks at; fp32."""
    out = qkv.float().contiguous()
    pool = torch.empty(2, kv_heads, 1, len(out), out.shape[2], device=out.device)
    meant.rope_kv_write(out, cos.float(), sin.float(), pool, torch.arange(len(out), device=out.device))
    return out


@DTYPES
@CASES
def test_queries_turn_in_place_and_keys_and_values_reach_their_slots(
    case: Case, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    qkv, cos, sin = inputs(case, dtype, device)
    kv, slots = empty_pool(case, dtype, device), some_slots(case, device)
    meaning = rotated(qkv, cos, sin, case.kv_heads)
    rope_kv_write(qkv, cos, sin, kv, slots)
    assert_written(qkv, kv, slots, meaning, assert_close)


@DTYPES
@CASES
def test_queries_and_keys_are_normed_before_they_turn(
    case: Case, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    qkv, cos, sin = inputs(case, dtype, device)
    kv, slots = empty_pool(case, dtype, device), some_slots(case, device)
    norm = torch.randn(case.q_heads + case.kv_heads, case.head_dim).to(device, dtype)
    meaning = qkv.float().contiguous()
    rms_norm_heads(meaning[:, : len(norm)], norm.float(), EPS)
    meaning = rotated(meaning, cos, sin, case.kv_heads)
    rope_kv_write(qkv, cos, sin, kv, slots, norm=norm, eps=EPS)
    assert_written(qkv, kv, slots, meaning, assert_close)


@DTYPES
@CASES
def test_without_rotation_keys_and_values_are_stored_as_they_are(
    case: Case, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    qkv, _, _ = inputs(case, dtype, device)
    kv, slots = empty_pool(case, dtype, device), some_slots(case, device).int()
    before = qkv.clone()
    kv_write(qkv, kv, slots)
    assert torch.equal(qkv, before)
    assert_written(qkv, kv, slots, before.float(), assert_close)


def test_padding_is_not_rotated_either(device: torch.device) -> None:
    case = Case(2, 1, 8, 8, 4)
    qkv, cos, sin = inputs(case, torch.float32, device)
    before = qkv.clone()
    rope_kv_write(qkv, cos, sin, empty_pool(case, torch.float32, device), torch.full((5,), -1, device=device))
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("stored", (torch.float8_e4m3fn, torch.float8_e4m3fnuz), ids=str)
@pytest.mark.parametrize("scaled", (True, False))
def test_an_fp8_pool_stores_what_is_divided_by_the_heads_scale(
    scaled: bool, stored: torch.dtype, device: torch.device, require_fp8: Callable[[torch.dtype], None]
) -> None:
    require_fp8(stored)
    case = Case(3, 2, 64, 64, 16)
    qkv, cos, sin = inputs(case, torch.float32, device)
    qkv.mul_(8.0).round_()  # whole numbers to 16 fit fp8: the interpreter rounds others wrongly
    qkv.clamp_(-16.0, 16.0)
    qkv[0, -1, 0] = 1e6  # beyond the largest
    scales = torch.tensor([[0.5, 2.0], [4.0, 0.25]], device=device) if scaled else None
    kv, slots = empty_pool(case, stored, device), some_slots(case, device)
    values = qkv[:, -2:].clone()
    rope_kv_write(qkv, torch.ones_like(cos), torch.zeros_like(sin), kv, slots, scales=scales)
    found = kv.float()[1].transpose(1, 2).flatten(0, 1)[slots[slots >= 0]]
    largest = torch.finfo(stored).max
    divisor = torch.ones(2, 1, device=device) if scales is None else scales[1][:, None]
    assert torch.equal(found, (values / divisor).clamp(-largest, largest)[slots >= 0])


def test_the_values_of_a_pool_beyond_32_bits_are_addressed_in_64(device: torch.device) -> None:
    """A pool of which only the last block is ever touched: memory is taken as it is written."""
    if device.type == "cuda":
        pytest.skip("would take the memory in full")
    case = Case(1, 1, 64, 64, 16, num_tokens=1)
    num_blocks = (1 << 31) // (16 * 64) + 2
    kv = torch.empty(2, num_blocks, 1, 16, 64, dtype=torch.float8_e4m3fn)
    qkv, _, _ = inputs(case, torch.float32, device)
    kv_write(qkv.round_(), kv, torch.tensor([num_blocks * 16 - 1], dtype=torch.int32, device=device))
    assert torch.equal(kv[:, -1, 0, -1].float(), qkv[0, 1:])


def test_an_odd_number_of_dims_is_refused(device: torch.device) -> None:
    case = Case(1, 1, 8, 8, 4)
    qkv, cos, sin = inputs(case, torch.float32, device)
    with pytest.raises(AssertionError, match="5 of 8 dims cannot turn in pairs"):
        rope_kv_write(
            qkv,
            cos[:, :, :5],
            sin[:, :, :5],
            empty_pool(case, torch.float32, device),
            some_slots(case, device),
        )
