"""Norm, rotation, gate, block copy and packed linears against what they mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.add_rms_norm import add_rms_norm, rms_norm
from kernels.copy_blocks import copy_blocks
from kernels.counter_random import uniform
from kernels.linear import LinearPacker, PackedLinear, PlainLinear
from kernels.rope_kv_write import rope_kv_write
from kernels.silu_mul import silu_mul

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_like(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("shape", ((1, 7), (3, 65), (8, 256)), ids=str)
def test_rms_norm_equals_torchs(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    assert_like(rms_norm(x, weight, 1e-5), F.rms_norm(x.float(), shape[1:], weight.float(), 1e-5))


@DTYPES
def test_add_rms_norm_adds_to_the_residual_first(dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(3, 33).to(dtype), torch.randn(3, 33).to(dtype), torch.ones(33).to(dtype)
    summed = x + residual
    out = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, summed)
    assert_like(out, F.rms_norm(summed.float(), (33,), eps=1e-6))


@DTYPES
def test_silu_mul_gates_the_second_half(dtype: torch.dtype) -> None:
    gate_up = torch.randn(5, 2 * 13).to(dtype)
    gate, up = gate_up.float().chunk(2, -1)
    assert_like(silu_mul(gate_up), gate * gate.sigmoid() * up)


def test_a_copied_blocks_source_may_be_another_pairs_destination() -> None:
    kv = torch.randn(2, 2, 5, 3, 4)
    before = kv.clone()
    copy_blocks(kv, torch.tensor([1, 2]), torch.tensor([2, 4]))
    assert torch.equal(kv[:, :, 2], before[:, :, 1])
    assert torch.equal(kv[:, :, 4], before[:, :, 2])
    assert torch.equal(kv[:, :, [0, 1, 3]], before[:, :, [0, 1, 3]])


@pytest.mark.parametrize(("num_tokens", "q_heads", "kv_heads", "head_dim"), ((1, 5, 1, 6), (7, 4, 2, 8)))
def test_queries_and_keys_turn_and_keys_and_values_reach_their_slots(
    num_tokens: int, q_heads: int, kv_heads: int, head_dim: int
) -> None:
    qkv = torch.randn(num_tokens, q_heads + 2 * kv_heads, head_dim)
    q, k, v = torch.split(qkv.clone(), [q_heads, kv_heads, kv_heads], 1)
    angles = torch.randn(num_tokens, 1, head_dim // 2)
    cos = angles.cos().repeat(1, 1, 2)
    sin = torch.cat([-angles.sin(), angles.sin()], -1)
    kv = torch.zeros(2, kv_heads, 9, 4, head_dim)
    slots = torch.randperm(36)[:num_tokens]
    rope_kv_write(qkv, cos, sin, kv, slots)
    stored = kv.flatten(2, 3).transpose(1, 2)  # [2, slots, kv_heads, head_dim]
    assert_like(qkv[:, :q_heads], turned(q, angles))
    assert_like(stored[0, slots], turned(k, angles))
    assert torch.equal(stored[1, slots], v)
    assert int((stored[0].abs().sum((1, 2)) > 0).sum()) == num_tokens


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + half) as complex numbers, times e^(i·angle)."""
    first, second = x.chunk(2, -1)
    rotated = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated.real, rotated.imag], -1)


@DTYPES
@pytest.mark.parametrize("num_rows", (1, 3, 64))
@pytest.mark.parametrize("biased", (True, False))
def test_a_packed_linear_equals_a_plain_one(biased: bool, num_rows: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(num_rows, 37).to(dtype), (torch.randn(53, 37) / 6).to(dtype)
    bias = torch.randn(53).to(dtype) if biased else None
    packed = PackedLinear(weight, bias)(x)
    assert_like(packed, F.linear(x.float(), weight.float(), None if bias is None else bias.float()))


def test_a_machine_that_cannot_pack_gets_plain_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PackedLinear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        raise RuntimeError("no oneDNN here")

    monkeypatch.setattr(PackedLinear, "__init__", refuse)
    linear = LinearPacker(torch.bfloat16).pack(torch.zeros(4, 4, dtype=torch.bfloat16), None)
    assert isinstance(linear, PlainLinear)


def test_uniform_numbers_are_uniform_and_independent_of_their_neighbours() -> None:
    seeds, positions = torch.arange(200).repeat_interleave(100), torch.arange(100).repeat(200)
    numbers = uniform(seeds, positions)
    counts = torch.histc(numbers.float(), 20, 0.0, 1.0)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50.8  # chi-square, 19 degrees, one in ten thousand
    assert torch.equal(numbers[777:778], uniform(seeds[777:778], positions[777:778]))
    pairs = numbers.view(200, 100)
    assert (
        abs(float(torch.corrcoef(torch.stack([pairs[:, :-1].flatten(), pairs[:, 1:].flatten()]))[0, 1]))
        < 0.03
    )


def test_the_generator_is_splitmix64() -> None:
    """The reference's first output for seed 0 is 0xE220A8397B1DCDAF."""
    from kernels.counter_random import _splitmix64

    assert int(_splitmix64(torch.tensor([0]))[0]) % 2**64 == 0xE220A8397B1DCDAF
