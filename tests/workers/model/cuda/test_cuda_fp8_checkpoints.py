"""The runner for GPUs with checkpoints in fp8 and scales of keys and values: over plain kernels and interpreted ones.

The interpreter rounds to fp8 wrongly (see `test_gpu_quantize_fp8.py`), so that what is stored or multiplied in fp8 is
rounded by what the kernels mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs

from kernels.gpu.kernel_table import GpuKernels, select_gpu_kernels
from kernels.gpu.linear import fp8_linear
from kernels.quantize_fp8 import quantize_fp8
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from tests.workers.model.fp8_models import Fp8Checkpoint, store_in_fp8
from workers.model import cuda_runner

PROMPTS = ([1, 17, 42, 5, 77, 31, 8, 64, 90, 23], [1, 9])
# An interpreter is slow.
SHORT = ([1, 17, 42],)
SIZES = {"max_num_seqs": 1, "max_num_batched_tokens": 4, "max_model_len": 8, "enforce_eager": True}
SCORED = SamplingParams(temperature=0.0, logprobs=3)
KV_FP8 = {"kv_cache_dtype": "fp8"}

interpreted = pytest.mark.skipif(not knobs.runtime.interpret, reason="TRITON_INTERPRET=1 was not set")


@pytest.fixture
def store(make_checkpoint: Any, tmp_path: Path) -> Callable[..., Fp8Checkpoint]:
    def store_one(layout: str, ignored: tuple[str, ...] = ()) -> Fp8Checkpoint:
        extra = {
            f"model.layers.{layer}.self_attn.{name}": torch.tensor(scales) / (layer + 1)
            for layer in range(3)
            for name, scales in (("k_scale", [0.004, 0.3]), ("v_scale", [0.5, 0.002]))
        }
        return store_in_fp8(make_checkpoint("untied_llama3"), tmp_path, layout, ignored, extra)

    return store_one


def scores(driver: Any, num_tokens: int = 4, prompts: Sequence[list[int]] = PROMPTS) -> list[Any]:
    """Tokens and their best alternatives, rounded as far as sums in another order may differ."""
    rows = [driver.add(prompt, SCORED) for prompt in prompts]
    driver.generate(rows, num_tokens, chunk=4)
    return [
        (each.token_ids, [round(entry.logprob, 3) for entry in each.logprobs.values()])
        for row in rows
        for each in driver.sequences[row].drawn[:num_tokens]
    ]


@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
def test_rows_draw_what_a_cpu_draws_with_stored_weights_and_scales(
    enforce_eager: bool, store: Any, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any
) -> None:
    directory = store("channel").directory
    expected = scores(drive(open_runner(directory, **KV_FP8)))
    runner = open_cuda_runner(directory, enforce_eager=enforce_eager, **KV_FP8)
    assert scores(drive_cuda(runner)) == expected
    assert scores(drive(open_runner(directory))) != expected


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_interpreted_attention_reads_numbers_times_scales(
    store: Any, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any, plain_kernels: Any
) -> None:
    def select(*given: Any) -> GpuKernels:
        kernels, plain = select_gpu_kernels(*given), plain_kernels(*given)
        return replace(plain, decoder=replace(plain.decoder, attentions=kernels.decoder.attentions))

    directory = store("channel", ignored=("layers.",)).directory
    expected = scores(drive(open_runner(directory, **SIZES, **KV_FP8)), 1, SHORT)
    runner = open_cuda_runner(directory, select_kernels=select, **SIZES, **KV_FP8)
    assert scores(drive_cuda(runner), 1, SHORT) == expected


@interpreted
def test_interpreted_products_take_the_stored_numbers(
    store: Any,
    open_runner: Any,
    open_cuda_runner: Any,
    drive: Any,
    drive_cuda: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fp8_linear, "quantize_fp8", quantize_fp8)
    directory = store("tensor", ignored=("layers.0.", "layers.1.")).directory
    expected = scores(drive(open_runner(directory, **SIZES)), 1, SHORT)
    runner = open_cuda_runner(directory, select_kernels=select_gpu_kernels, **SIZES)
    assert scores(drive_cuda(runner), 1, SHORT) == expected


def without_fp8(_: torch.device) -> None:
    """What such a device has."""


def test_where_nothing_multiplies_fp8_the_weights_are_made_wide(
    store: Any,
    open_runner: Any,
    open_cuda_runner: Any,
    drive: Any,
    drive_cuda: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored = store("fp8 block")
    monkeypatch.setattr(cuda_runner, "fp8_dtype_of", without_fp8)
    found = scores(drive_cuda(open_cuda_runner(stored.directory)))
    assert found == scores(drive(open_runner(stored.wide)))
    (told,) = (text for text in caplog.messages if "fp8" in text)
    assert "this device cannot multiply" in told


def test_who_asks_for_fp8_there_is_told_to_leave_it_out(
    store: Any, open_cuda_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_runner, "fp8_dtype_of", without_fp8)
    with pytest.raises(InvalidRequest, match="leave quantization out"):
        open_cuda_runner(store("channel").directory, quantization="fp8")
