"""A model whose layers multiply in fp8, on a CPU: against transformers with such linears, and what is not quantised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import select_kernels
from kernels.fp8_linear import Fp8Linear
from kernels.quantize_fp8 import quantize_fp8
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.checkpoint import open_checkpoint
from workers.model.cpu_runner import CpuRunner
from workers.model.devices import require_fp8
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config
from workers.model.runner_config import RunnerConfig
from workers.model.weight_layout import decoder_layout
from workers.model.weights import DecoderWeights, ExpertsWeights, MlpWeights, load_weights
from workers.rank_link import free_port
from workers.shard import Shard
from workers.step_plan import Chunk, RowStart, StepPlan
from workers.tensor_parallel import TensorParallelGroup, connect_group

PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11]
SCORED = SamplingParams(temperature=0.0, logprobs=20)
SUMMED = ("o_proj", "down_proj")  # whose features are divided among ranks


class QuantisedLinear(torch.nn.Module):
    """Every rank quantises its part of the features, of the weight as of the tokens."""

    def __init__(self, linear: torch.nn.Linear, num_parts: int) -> None:
        super().__init__()
        self._weights = [dequantised(part) for part in linear.weight.chunk(num_parts, 1)]
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(0, -2).chunk(len(self._weights), 1)
        products = [dequantised(part) @ weight.T for part, weight in zip(parts, self._weights, strict=True)]
        out = torch.stack(products).sum(0).float().view(*x.shape[:-1], -1)
        return out if self._bias is None else out + self._bias.detach()


def dequantised(rows: Tensor) -> Tensor:
    quantised, scales = quantize_fp8(rows)
    return quantised.double() * scales


def logits_of_transformers(directory: Path, num_ranks: int) -> Tensor:
    """Of the token after the prompt, by transformers with every linear of every layer replaced."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        for name, module in list(model.model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent, _, own = name.rpartition(".")
                parts = num_ranks if own in SUMMED else 1
                setattr(model.model.get_submodule(parent), own, QuantisedLinear(module, parts))
        logits: Tensor = model(torch.tensor([PROMPT])).logits[0, -1]
    return logits


def logits_of_ranks(directory: Path, num_ranks: int, record_logits: Any, **config: Any) -> Tensor:
    """The same by so many runners, which are threads of this process."""
    port = free_port("127.0.0.1")
    start = RowStart(0, pack_tokens(PROMPT), b"", SCORED, seed=0)
    chunk = Chunk(0, 0, pack_tokens(PROMPT), sample=True)
    plan = StepPlan(0, starts=(start,), grown=((0, (1, 2, 3)),), chunks=(chunk,))

    def run(rank: int) -> list[Tensor]:
        alone = num_ranks == 1
        group = TensorParallelGroup() if alone else connect_group(rank, num_ranks, "127.0.0.1", port, 60.0)
        runner = CpuRunner(RunnerConfig(directory, "float32", block_size=4, max_num_seqs=8, **config), group)
        recorded: list[Tensor] = record_logits(runner)
        runner.launch(plan)
        runner.close()
        return recorded

    with ThreadPoolExecutor(num_ranks) as threads:
        of_rank_0, *_ = threads.map(run, range(num_ranks))
    return of_rank_0[0][0]


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
