"""The two ends of a decoder in half precision, where transformers' fp32 tests do not look."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.linear import PlainLinear
from workers.model.families import llama
from workers.model.hf_config import HfConfig
from workers.model.layers.embedding import Embedding, LogitsHead
from workers.model.model_spec import EmbeddingSpec, LearnedPositions, ModelSpec
from workers.model.weights.load_weights import DecoderWeights
from workers.tensor_parallel import TensorParallelGroup

CONFIG = {
    "vocab_size": 7,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.fixture
def spec() -> ModelSpec:
    return llama.spec(HfConfig(CONFIG, "config.json"))


@pytest.fixture
def weights() -> DecoderWeights:
    """In bfloat16, with a table of nine positions and neither layers nor projections."""
    table = torch.arange(28).view(7, 4).bfloat16()
    positions = torch.arange(36).view(9, 4).bfloat16() * 100
    lm_head = PlainLinear(table, None)
    return DecoderWeights(table, positions, None, (), None, None, lm_head)


def test_the_scale_is_rounded_before_it_multiplies(weights: DecoderWeights) -> None:
    embed = Embedding(EmbeddingSpec(scale=3072**0.5), replace(weights, positions=None))
    found = embed(torch.tensor([5]), torch.tensor([0]))  # 20 to 23, times 55.5
    assert found.tolist() == [[1112.0, 1168.0, 1224.0, 1280.0]]  # times 55.4256, the second would be 1160


def test_positions_count_from_their_offset(weights: DecoderWeights) -> None:
    embed = Embedding(EmbeddingSpec(positions=LearnedPositions(9, offset=2)), weights)
    found = embed(torch.tensor([1, 1]), torch.tensor([0, 3]))
    assert weights.positions is not None
    assert found.tolist() == (weights.embedding[[1, 1]] + weights.positions[[2, 5]]).tolist()


def test_logits_are_capped_in_full_precision(spec: ModelSpec, weights: DecoderWeights) -> None:
    head = LogitsHead(replace(spec, logits_softcap=30.0), weights, TensorParallelGroup())
    normed = torch.randn(3, 4).bfloat16()
    raw = (normed @ weights.embedding.T).float()
    found = head(normed)
    assert found is not None and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tanh(raw / 30.0) * 30.0)
