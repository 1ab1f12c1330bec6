"""Checkpoints in fp8 in each of the layouts in use, made of wide ones, and what transformers makes of such linears.

Used by the tests of weights in fp8 and of checkpoints that hold them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.quantize_fp8 import quantize_fp8
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.rank_link import free_port
from workers.step_plan import Chunk, RowStart, StepPlan
from workers.tensor_parallel import TensorParallelGroup, connect_group

PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11]
SCORED = SamplingParams(temperature=0.0, logprobs=20)
SUMMED = ("o_proj", "down_proj")  # whose features are divided among ranks
BLOCK = 32  # neither the tiny models' sizes nor their ranks' parts are multiples of it


def compressed(strategy: str, dynamic: bool, **weights: Any) -> dict[str, Any]:
    """What llm-compressor writes, as far as it says something of numbers."""
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": strategy, "dynamic": False, **weights},
        "input_activations": {
            **numbers,
            "strategy": "token" if dynamic else "tensor",
            "dynamic": dynamic,
            "block_structure": None,
        },
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "channel": compressed("channel", True),
    "tensor": compressed("tensor", False),
    "block": compressed("block", True, block_structure=[BLOCK, BLOCK]),
    "fp8": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    "fp8 block": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head"],
    },
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8"},
}


@dataclass(frozen=True, slots=True)
class Fp8Checkpoint:
    directory: Path
    wide: Path  # the same weights in fp32, without a word of fp8
    numbers: dict[str, Tensor]  # of each module in fp8: [outputs, features]
    scales: dict[str, Tensor]  # of each, as they are stored


def store_in_fp8(
    source: Path,
    target: Path,
    layout: str,
    ignored: Collection[str] = (),
    extra: dict[str, Tensor] | None = None,
    **config: Any,
) -> Fp8Checkpoint:
    """All matrices of layers but routers, and but those with a part of `ignored` in their names."""
    tensors = load_file(source / "model.safetensors")
    wide, numbers, scales = dict(tensors), dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in tensors.items():
        inside = ".layers." in name and weight.dim() == 2 and ".gate." not in name
        if inside and not any(part in name for part in ignored):
            module = name.removesuffix(".weight")
            numbers[module], scales[module], wide[name] = _quantize(weight, layout)
    stored = {name: tensor for name, tensor in tensors.items() if name.removesuffix(".weight") not in numbers}
    ending = "weight_scale_inv" if layout == "fp8 block" else "weight_scale"
    for module in numbers:
        stored |= {f"{module}.weight": numbers[module], f"{module}.{ending}": scales[module]}
        if layout in ("tensor", "fp8", "modelopt"):
            stored[f"{module}.input_scale"] = torch.tensor([0.003])  # would lose almost everything
    plain = json.loads((source / "config.json").read_text())
    said = plain | {"quantization_config": CONFIGS[layout] | config}
    narrow = _save(target / "fp8", stored | (extra or {}), said)
    return Fp8Checkpoint(narrow, _save(target / "wide", wide, plain), numbers, scales)


def _save(directory: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _quantize(weight: Tensor, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales as they are stored, and what they stand for."""
    if "block" in layout:
        rows, columns = (torch.arange(size) // BLOCK for size in weight.shape)
        grid = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
        for row, column in torch.cartesian_prod(*map(torch.arange, grid.shape)).tolist():
            grid[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
        every = grid[rows][:, columns]
    elif layout == "channel":
        grid = every = (weight.abs().amax(1, keepdim=True) / 448).bfloat16().float()
    else:
        grid = every = weight.abs().max() / 448
    numbers = (weight / every).clamp(-448, 448).to(torch.float8_e4m3fn)
    if layout == "channel":
        return numbers, grid.bfloat16(), numbers.float() * every
    return numbers, grid.view(1) if layout == "tensor" else grid, numbers.float() * every


class QuantisedLinear(torch.nn.Module):
    """Every rank quantises its part of the features, of the weight as of the tokens."""

    def __init__(self, linear: torch.nn.Linear, num_parts: int, quantise_weight: bool) -> None:
        super().__init__()
        parts = linear.weight.detach().chunk(num_parts, 1)
        self._weights = [dequantised(part) if quantise_weight else part.double() for part in parts]
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(0, -2).chunk(len(self._weights), 1)
        products = [dequantised(part) @ weight.T for part, weight in zip(parts, self._weights, strict=True)]
        out = torch.stack(products).sum(0).float().view(*x.shape[:-1], -1)
        return out if self._bias is None else out + self._bias.detach()


def dequantised(rows: Tensor) -> Tensor:
    quantised, scales = quantize_fp8(rows)
    return quantised.double() * scales


def logits_of_transformers(
    directory: Path, num_ranks: int, quantise_weights: bool = True, ignored: Collection[str] = ()
) -> Tensor:
    """Of the token after the prompt, by transformers with every linear of every layer replaced but the ignored."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        for name, module in list(model.model.named_modules()):
            if isinstance(module, torch.nn.Linear) and not any(part in name for part in ignored):
                parent, _, own = name.rpartition(".")
                parts = num_ranks if own in SUMMED else 1
                linear = QuantisedLinear(module, parts, quantise_weights)
                setattr(model.model.get_submodule(parent), own, linear)
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
