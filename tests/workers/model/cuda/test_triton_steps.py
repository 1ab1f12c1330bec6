"""The runner for GPUs over its own kernels: interpreted where there is no GPU, and on one, with graphs and without.

Run interpreted by `TRITON_INTERPRET=1 pytest tests/workers/model/cuda/test_triton_steps.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton import knobs

from kernels.gpu.kernel_table import GpuKernels, select_gpu_kernels
from kernels.linear import PlainLinear
from protocol.deployment_secrets import DeploymentSecrets
from protocol.messages import Submit
from protocol.model_source import resolve_model
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from workers.engine import Engine
from workers.engine_config import EngineConfig
from workers.model.cuda.cuda_device import CudaDevice

PROMPTS = ([1, 17, 42, 5, 77, 31], [1, 9])
GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=0.9, top_p=0.9, top_k=20)

# numpy's, of the products of unsigned numbers that a counter's random bits are made of
overflows = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
interpreted = pytest.mark.skipif(not knobs.runtime.interpret, reason="TRITON_INTERPRET=1 was not set")
on_gpu = pytest.mark.skipif(
    knobs.runtime.interpret or not torch.cuda.is_available(),
    reason="there is no GPU, or it was not to be used",
)


def generate(driver: Any, num_tokens: int, prompts: Any = PROMPTS, samplings: Any = (GREEDY, DRAWN)) -> Any:
    rows = [driver.add(*each, seed=5) for each in zip(prompts, samplings, strict=True)]
    driver.generate(rows, num_tokens, chunk=4)
    return [driver.sequences[row].generated for row in rows]


@interpreted
@overflows
@pytest.mark.parametrize("deterministic", (False, True), ids=("", "deterministic"))
def test_interpreted_kernels_draw_what_a_cpu_draws(
    deterministic: bool, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any, tmp_path: Path
) -> None:
    directory = tiny_llama(tmp_path)
    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "kv_cache_memory_bytes": 1 << 20}
    expected = generate(drive(open_runner(directory, **sizes)), 3)
    runner = open_cuda_runner(
        directory, select_kernels=select_gpu_kernels, deterministic=deterministic, **sizes
    )
    assert generate(drive_cuda(runner), 3) == expected


@interpreted
@overflows
def test_interpreted_experts_draw_what_a_cpu_draws_in_graphs(
    open_runner: Any, open_cuda_runner: Any, strict_device: Any, drive: Any, drive_cuda: Any, tmp_path: Path
) -> None:
    directory, device = tiny_mixtral(tmp_path), strict_device()
    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 8, "kv_cache_memory_bytes": 1 << 20}
    samplings = (GREEDY, GREEDY)
    expected = generate(drive(open_runner(directory, **sizes)), 3, samplings=samplings)
    runner = open_cuda_runner(directory, device=device, select_kernels=select_gpu_kernels, **sizes)
    assert generate(drive_cuda(runner), 3, samplings=samplings) == expected
    assert device.num_replays > 0


@interpreted
@overflows
def test_deterministic_rows_have_the_same_bits_alone_and_beside_others_in_chunks(
    open_cuda_runner: Any, drive_cuda: Any, tmp_path: Path
) -> None:
    scored, directory = SamplingParams(temperature=0.0, logprobs=5), tiny_llama(tmp_path)
    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "kv_cache_memory_bytes": 1 << 20}
    found = []
    for prompts, chunk in (([PROMPTS[0]], 16), (PROMPTS, 4)):
        runner = open_cuda_runner(directory, select_kernels=select_gpu_kernels, deterministic=True, **sizes)
        driver = drive_cuda(runner)
        rows = [driver.add(prompt, scored) for prompt in prompts]
        driver.generate(rows, 3, chunk=chunk)
        found.append([each.logprobs[0] for each in driver.sequences[0].drawn[:3]])
    assert found[0] == found[1]


@interpreted
@overflows
def test_padding_computes_with_numbers_whatever_memory_held_before(
    nan_filled_memory: None, open_cuda_runner: Any, drive_cuda: Any, tmp_path: Path
) -> None:
    def select(*given: Any) -> GpuKernels:
        kernels = select_gpu_kernels(*given)
        return replace(kernels, decoder=replace(kernels.decoder, pack_linear=FiniteLinear))

    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "kv_cache_memory_bytes": 1 << 20}
    runner = open_cuda_runner(tiny_llama(tmp_path), select_kernels=select, **sizes)
    generate(drive_cuda(runner), 2, (*PROMPTS, [3]), (GREEDY, DRAWN, GREEDY))  # three rows in a graph of four


class FiniteLinear(PlainLinear):
    def __call__(self, x: Tensor) -> Tensor:
        assert x.isfinite().all(), "some row has computed with what memory held before"
        return super().__call__(x)


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """What torch allocates without writing it is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# One layer with two KV heads of 16 numbers.
TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}


def tiny_llama(directory: Path) -> Path:
    from transformers import LlamaConfig

    return save(LlamaConfig(**TINY), directory)


def tiny_mixtral(directory: Path) -> Path:
    from transformers import MixtralConfig

    return save(MixtralConfig(**TINY, num_local_experts=5, initializer_range=0.3), directory)


def save(config: Any, directory: Path) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def open_on_gpu(open_cuda_runner: Any, variant: str, **config: Any) -> Any:
    device = CudaDevice(torch.device("cuda", 0))
    return open_cuda_runner(
        variant, device=device, select_kernels=select_gpu_kernels, **{"block_size": 16, **config}
    )


MANY = [[(7 * index + row) % 97 for index in range(3 + 5 * row)] for row in range(8)]
WISHES = [
    GREEDY,
    DRAWN,
    SamplingParams(min_p=0.1),
    GREEDY,
    SamplingParams(temperature=1.2),
    *[GREEDY] * 2,
    DRAWN,
]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
def test_a_gpu_draws_what_a_cpu_draws(
    family_variant: str,
    enforce_eager: bool,
    open_runner: Any,
    open_cuda_runner: Any,
    drive: Any,
    drive_cuda: Any,
) -> None:
    expected = generate(drive(open_runner(family_variant)), 12, MANY, WISHES)
    runner = open_on_gpu(open_cuda_runner, family_variant, enforce_eager=enforce_eager)
    assert generate(drive_cuda(runner), 12, MANY, WISHES) == expected


@pytest.mark.gpu
@on_gpu
def test_a_pool_takes_its_share_of_the_gpu(open_cuda_runner: Any) -> None:
    """Half a GiB, which is less than as many blocks as there may be take."""
    free, total = torch.cuda.mem_get_info()
    share = total - free + (1 << 29)
    options = {"kv_cache_memory_bytes": None, "gpu_memory_utilization": share / total}
    open_on_gpu(open_cuda_runner, "untied_llama3", **options)
    free, total = torch.cuda.mem_get_info()
    assert total - free == pytest.approx(share, abs=1 << 27)


@pytest.mark.multi_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_gpus_say_what_a_cpu_says() -> None:
    from workers.local_ranks import LocalRanks  # which brings what serves requests

    source, said = resolve_model("sapling"), []
    for options in ({"device": "cpu"}, {"device": "cuda", "tensor_parallel_size": 2}):
        config = EngineConfig(dtype="float32", block_size=16, kv_cache_memory_bytes=64 << 20, **options)
        ranks = LocalRanks(config, source, DeploymentSecrets.generate(), lambda *_: None)
        said.append(tokens_of(ranks.engine))
        ranks.close()
    assert said[0] == said[1]


def tokens_of(engine: Engine) -> list[int]:
    sampling = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, seed=0)
    engine.submit(Submit("greedy", pack_tokens([5, 9, 200, 31, 7] * 20), sampling))
    rows, tokens = TokenRows(), list[int]()
    while engine.has_work:
        report = engine.step()
        for output in rows.expand(report.outputs, report.rows, report.tokens):
            tokens += output.token_ids
    return tokens
