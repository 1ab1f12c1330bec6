"""Layer norm, norms of heads, activations, partial rotation and experts against what they mean."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kernels.activations import ACTIVATIONS, GATED_ACTIVATIONS
from kernels.add_rms_norm import rms_norm, rms_norm_heads
from kernels.dispatch import select_kernels
from kernels.experts import GroupedExperts, choose_experts
from kernels.layer_norm import layer_norm
from kernels.linear import Linear, PlainLinear
from kernels.rope_kv_write import kv_write, rope_kv_write

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
MEANINGS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: x.clamp(min=0),
}


def assert_like(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("biased", (True, False))
def test_layer_norm_centres_scales_and_shifts(biased: bool, dtype: torch.dtype) -> None:
    x, weight = (torch.randn(3, 65) + 2).to(dtype), torch.randn(65).to(dtype)
    bias = torch.randn(65).to(dtype) if biased else None
    centred = x.float() - x.float().mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.float()
    assert_like(layer_norm(x, weight, bias, 1e-3), expected if bias is None else expected + bias.float())


@DTYPES
def test_each_head_is_normed_by_itself_with_its_own_weight(dtype: torch.dtype) -> None:
    heads, weight = torch.randn(5, 3, 7).to(dtype), torch.randn(3, 7).to(dtype)
    before = heads.clone()
    rms_norm_heads(heads[:, :2], weight[:2], 1e-5)
    for head in range(2):
        assert_like(heads[:, head], rms_norm(before[:, head].contiguous(), weight[head], 1e-5))
    assert torch.equal(heads[:, 2], before[:, 2])


@DTYPES
@pytest.mark.parametrize("name", MEANINGS)
def test_an_activation_equals_its_formula_gated_or_not(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(5, 2 * 13).to(dtype)
    gate, up = x.float().chunk(2, -1)
    assert_like(ACTIVATIONS[name](x), MEANINGS[name](x.float()))
    assert_like(GATED_ACTIVATIONS[name](x), MEANINGS[name](gate) * up)


def test_every_activation_has_a_formula() -> None:
    assert ACTIVATIONS.keys() == GATED_ACTIVATIONS.keys() == MEANINGS.keys()


@pytest.mark.parametrize("dims", (2, 6, 8))
def test_only_the_first_dimensions_of_a_head_turn(dims: int) -> None:
    qkv, slots = torch.randn(3, 4 + 2 * 2, 8), torch.tensor([5, 0, 9])
    angles = torch.randn(3, 1, dims // 2)
    whole, turned = qkv.clone(), qkv.clone()
    kv, expected_kv = torch.zeros(2, 2, 3, 4, 8), torch.zeros(2, 2, 3, 4, dims)
    rope_kv_write(turned, *tables(angles), kv, slots)
    first = whole[..., :dims].contiguous()
    rope_kv_write(first, *tables(angles), expected_kv, slots)
    assert_like(turned[:, :6, :dims], first[:, :6])
    assert torch.equal(turned[..., dims:], whole[..., dims:])
    assert_like(kv[..., :dims], expected_kv)


def tables(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)


def test_without_rotation_keys_and_values_are_stored_as_they_are() -> None:
    qkv, slots = torch.randn(3, 5 + 2 * 2, 6), torch.tensor([7, 2, 3])
    before, kv = qkv.clone(), torch.zeros(2, 2, 2, 4, 6)
    kv_write(qkv, kv, slots)
    stored = kv.flatten(2, 3)[:, :, slots].transpose(1, 2)  # [2, tokens, kv_heads, head_dim]
    assert torch.equal(qkv, before)
    assert torch.equal(stored[0], qkv[:, 5:7])
    assert torch.equal(stored[1], qkv[:, 7:])


@pytest.mark.parametrize("normalized", (True, False))
def test_the_most_likely_experts_are_chosen_with_their_probabilities(normalized: bool) -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0, -3.0]])
    weights, chosen = choose_experts(scores, 2, normalized)
    expected = torch.tensor([math.exp(2.0), math.exp(1.0)])
    total = expected.sum() if normalized else scores.exp().sum()
    assert chosen.tolist() == [[1, 2]]
    torch.testing.assert_close(weights[0], expected / total)


@DTYPES
@pytest.mark.parametrize("num_tokens", (1, 3, 40))
def test_grouped_experts_say_what_each_token_hears_alone(num_tokens: int, dtype: torch.dtype) -> None:
    x = torch.randn(num_tokens, 7).to(dtype)
    matrices = [(torch.randn(shape) / 3).to(dtype) for shape in 5 * ((12, 7), (7, 6))]
    weights, chosen = choose_experts(torch.randn(num_tokens, 5), 2, True)
    out = GroupedExperts(matrices, 5, PlainLinear)(x, weights, chosen, GATED_ACTIVATIONS["silu"])
    for token in range(num_tokens):
        expected = torch.zeros(7)
        for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
            gate_up, down = matrices[2 * expert].float(), matrices[2 * expert + 1].float()
            gate, up = (gate_up @ x[token].float()).chunk(2)
            expected += weight * (down @ (F.silu(gate) * up))
        assert_like(out[token], expected)


def test_an_expert_that_nobody_chose_does_not_run() -> None:
    def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        def run(x: torch.Tensor) -> torch.Tensor:
            assert weight.isfinite().all(), "nobody chose it"
            return F.linear(x, weight, bias)

        return run

    nans, ones = torch.full((3, 3), torch.nan), torch.ones(3, 3)
    experts = GroupedExperts([nans, nans, ones, ones, nans, nans], 3, pack)
    out = experts(torch.ones(2, 3), torch.ones(2, 1), torch.tensor([[1], [1]]), torch.neg)
    assert torch.equal(out, torch.full((2, 3), -9.0))


@pytest.mark.parametrize("fp8", (False, True))
def test_experts_are_packed_as_other_parts_of_layers_are(fp8: bool) -> None:
    kernels = select_kernels(torch.float32, 4, 1, (), fp8_weights=fp8)
    matrices, x = [torch.randn(12, 7), torch.randn(7, 6)], torch.randn(3, 7)
    experts, activate = kernels.pack_experts(iter(matrices), 1), kernels.gated_activations["silu"]
    gate_up, down = (kernels.pack_layer_linear(matrix, None) for matrix in matrices)
    out = experts(x, torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64), activate)
    assert torch.equal(out, down(activate(gate_up(x))))
