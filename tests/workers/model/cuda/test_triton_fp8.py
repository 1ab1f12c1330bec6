"""The runner for GPUs with weights in fp8: over interpreted kernels against a CPU's, and where there is no fp8.

The interpreter rounds to fp8 wrongly (see `test_gpu_quantize_fp8.py`), so that what the kernels mean quantises here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs

from kernels.gpu.kernel_table import select_gpu_kernels
from kernels.gpu.linear import fp8_linear
from kernels.quantize_fp8 import quantize_fp8
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from workers.model import cuda_runner

SCORED = SamplingParams(temperature=0.0, logprobs=0)
PROMPT = [1, 17, 42, 5, 77, 31]

interpreted = pytest.mark.skipif(not knobs.runtime.interpret, reason="TRITON_INTERPRET=1 was not set")


@interpreted
@pytest.mark.parametrize("deterministic", (False, True), ids=("", "deterministic"))
def test_interpreted_fp8_draws_what_a_cpu_draws(
    deterministic: bool,
    open_runner: Any,
    open_cuda_runner: Any,
    drive: Any,
    drive_cuda: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fp8_linear, "quantize_fp8", quantize_fp8)
    directory = tiny_llama(tmp_path)
    config = {
        "quantization": "fp8",
        "deterministic": deterministic,
        "enforce_eager": True,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 16,
        "kv_cache_memory_bytes": 1 << 20,
    }
    drivers = (
        drive(open_runner(directory, **config)),
        drive_cuda(open_cuda_runner(directory, select_kernels=select_gpu_kernels, **config)),
    )
    expected, found = map(generate, drivers)
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [each for _, each in found] == pytest.approx([each for _, each in expected], abs=1e-5)


def generate(driver: Any) -> list[tuple[int, float]]:
    """Tokens and their logprobs, which say more of the logits."""
    driver.generate([driver.add(PROMPT, SCORED)], 3, chunk=4)
    return [(each.token_ids[0], each.logprobs[0].logprob) for each in driver.sequences[0].drawn]


def test_weights_in_fp8_on_a_gpu_without_it_are_refused(
    open_cuda_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_runner, "fp8_dtype_of", lambda device: None)
    with pytest.raises(InvalidRequest, match="which needs a GPU of compute capability") as refusal:
        open_cuda_runner(quantization="fp8")
    assert refusal.value.param == "quantization"


def tiny_llama(directory: Path) -> Path:
    """One layer with two KV heads of 16 numbers, and features that torch's library takes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
    )
    model: Any = AutoModelForCausalLM
    model.from_config(config).save_pretrained(directory)
    return directory
