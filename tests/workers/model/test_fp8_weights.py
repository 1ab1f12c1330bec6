"""A model whose layers multiply in fp8, on a CPU: against transformers with such linears, and what is not quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.dispatch import select_kernels
from kernels.fp8_linear import Fp8Linear
from protocol.errors import InvalidRequest
from tests.workers.model.fp8_models import PROMPT, SCORED, logits_of_ranks, logits_of_transformers
from workers.model.devices import require_fp8
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config
from workers.model.weights.checkpoint import open_checkpoint
from workers.model.weights.load_weights import DecoderWeights, ExpertsWeights, MlpWeights, load_weights
from workers.model.weights.weight_layout import decoder_layout
from workers.shard import Shard


@pytest.mark.parametrize("deterministic", (False, True), ids=("", "deterministic"))
@pytest.mark.parametrize("num_ranks", (1, 2))
@pytest.mark.parametrize("variant", ("untied_llama3", "biased_linear"))
def test_logits_are_those_of_transformers_with_linears_in_fp8(
    variant: str, num_ranks: int, deterministic: bool, make_checkpoint: Any, record_logits: Any
) -> None:
    directory = make_checkpoint(variant)
    config = {"quantization": "fp8", "deterministic": deterministic}
    found = logits_of_ranks(directory, num_ranks, record_logits, **config)
    meant = logits_of_transformers(directory, num_ranks)
    assert (found - meant).abs().max() < 1e-3 * meant.abs().max()


def test_they_are_others_than_the_plain_models(
    make_checkpoint: Any, record_logits: Any, reference_logits: Any
) -> None:
    directory = make_checkpoint("untied_llama3")
    found = logits_of_ranks(directory, 1, record_logits, quantization="fp8")
    plain = reference_logits(directory, PROMPT)[-1]
    assert 0.01 < (found - plain).norm() / plain.norm() < 0.3


def load(directory: Path) -> DecoderWeights:
    config = read_config(directory)
    family = find_family(config)
    layout = decoder_layout(family.spec(config), family.names(config))
    checkpoint = open_checkpoint(directory, "auto", seed=0)
    kernels = select_kernels(torch.float32, 4, 1, (), fp8_weights=True)
    return load_weights(checkpoint, layout, Shard(0, 1), torch.float32, kernels)


@pytest.mark.parametrize("variant", ("untied_llama3", "opt_norm_after_projected", "mixtral"))
def test_layers_alone_are_quantised_and_no_router(variant: str, make_checkpoint: Any) -> None:
    weights = load(make_checkpoint(variant))
    of_layers, others = [], [weights.lm_head, weights.project_in, weights.project_out]
    for layer in weights.layers:
        of_layers += [layer.qkv, layer.o]
        if isinstance(layer.mlp, ExpertsWeights):
            others.append(layer.mlp.router)
        if isinstance(layer.mlp, MlpWeights):
            of_layers += [layer.mlp.gate_up, layer.mlp.down]
    assert all(isinstance(linear, Fp8Linear) for linear in of_layers)
    assert not any(isinstance(linear, Fp8Linear) for linear in others)


def test_deterministic_rows_have_the_same_bits_alone_and_beside_others(open_runner: Any, drive: Any) -> None:
    found = []
    for prompts, chunk in (([PROMPT], 64), ((PROMPT, [9, 8, 7], [*PROMPT, 5]), 3)):
        driver = drive(open_runner(quantization="fp8", deterministic=True))
        driver.generate([driver.add(prompt, SCORED) for prompt in prompts], 8, chunk=chunk)
        found.append(driver.sequences[0].drawn)
    assert found[0] == found[1]


def test_a_device_without_fp8_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match=r"quantization is fp8, which needs a GPU of .* 8\.9 or above"):
        require_fp8(None, "quantization")
