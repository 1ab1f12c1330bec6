"""The runner for GPUs over a pool of fp8: on plain kernels, and with its own attention where that is interpreted.

Triton's interpreter rounds some numbers to fp8 wrongly, so that there its attention reads what torch has rounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from triton import knobs

from kernels.gpu.fp8_types import fp8_dtype_of_capability
from kernels.gpu.kernel_table import GpuKernels, select_gpu_kernels
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

PROMPTS = ([1, 17, 42, 5, 77, 31, 8, 64, 90, 23], [1, 9])
SCORED = SamplingParams(temperature=0.0, logprobs=3)


def scores(driver: Any, num_tokens: int, chunk: int) -> list[Any]:
    """Tokens and their best alternatives, rounded as far as sums in another order may differ."""
    rows = [driver.add(prompt, SCORED) for prompt in PROMPTS]
    driver.generate(rows, num_tokens, chunk=chunk)
    return [
        (each.token_ids, [round(entry.logprob, 3) for entry in each.logprobs.values()])
        for row in rows
        for each in driver.sequences[row].drawn[:num_tokens]
    ]


@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
def test_rows_draw_what_a_cpu_draws_over_such_a_pool(
    enforce_eager: bool, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any
) -> None:
    expected = scores(drive(open_runner(kv_cache_dtype="fp8")), 6, 4)
    runner = open_cuda_runner(kv_cache_dtype="fp8", enforce_eager=enforce_eager)
    assert scores(drive_cuda(runner), 6, 4) == expected
    assert scores(drive(open_runner()), 6, 4) != expected


@pytest.mark.skipif(not knobs.runtime.interpret, reason="TRITON_INTERPRET=1 was not set")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_interpreted_attention_reads_what_a_cpu_reads(
    open_runner: Any,
    open_cuda_runner: Any,
    drive: Any,
    drive_cuda: Any,
    plain_kernels: Any,
) -> None:
    def select(*given: Any) -> GpuKernels:
        kernels, plain = select_gpu_kernels(*given), plain_kernels(*given)
        return replace(plain, decoder=replace(plain.decoder, attentions=kernels.decoder.attentions))

    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "kv_cache_dtype": "fp8"}
    expected = scores(drive(open_runner(**sizes)), 2, 8)
    given = {"select_kernels": select, "enforce_eager": True}
    assert scores(drive_cuda(open_cuda_runner(**given, **sizes)), 2, 8) == expected


def test_the_same_memory_holds_four_times_what_it_holds_in_fp32(open_cuda_runner: Any) -> None:
    wide, narrow = (open_cuda_runner(kv_cache_dtype=kind).facts.num_blocks for kind in ("auto", "fp8"))
    assert narrow // 4 == wide


def test_a_gpu_without_such_numbers_refuses_with_what_to_do(
    open_cuda_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_an_a100(_: torch.device) -> torch.dtype | None:
        return fp8_dtype_of_capability(8, 0)

    monkeypatch.setattr("workers.model.cuda_runner.fp8_dtype_of", of_an_a100)
    with pytest.raises(InvalidRequest, match="leave kv_cache_dtype out") as refused:
        open_cuda_runner(kv_cache_dtype="fp8")
    assert refused.value.param == "kv_cache_dtype"
    open_cuda_runner(kv_cache_dtype="auto")
