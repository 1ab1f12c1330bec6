"""A runner on a CPU whose pool is of fp8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.sampling import SamplingParams

PROMPT = [(7 * index) % 89 + 3 for index in range(45)]
SCORED = SamplingParams(temperature=0.0, prompt_logprobs=0)


def rounding(write: Callable[..., None]) -> Callable[..., None]:
    """What is in the pool behind it are numbers that fp8 has."""

    def write_and_round(*given: Tensor) -> None:
        write(*given)
        stored, slots = given[-2].flatten(2, 3), given[-1]
        stored[:, :, slots] = stored[:, :, slots].to(torch.float8_e4m3fn).to(stored.dtype)

    return write_and_round


@pytest.mark.parametrize(("dtype", "times"), (("bfloat16", 2), ("float16", 2), ("float32", 4)))
def test_the_same_memory_holds_as_many_times_more_blocks(dtype: str, times: int, open_runner: Any) -> None:
    memory = {"dtype": dtype, "kv_cache_memory_bytes": 60_000}
    wide, narrow = (open_runner(kv_cache_dtype=kind, **memory).facts.num_blocks for kind in ("auto", "fp8"))
    assert narrow // times == wide


@pytest.mark.parametrize(
    ("deterministic", "dtype"), ((False, "float32"), (False, "bfloat16"), (True, "float32"))
)
@pytest.mark.parametrize("variant", ("untied_llama3", "gemma2", "falcon_new_alibi_biased"))
def test_logits_are_those_over_a_wide_pool_of_the_same_rounded_numbers(
    variant: str, deterministic: bool, dtype: str, open_runner: Any, drive: Any, record_logits: Any
) -> None:
    found = []
    for kind in ("auto", "fp8"):
        runner = open_runner(variant, dtype=dtype, kv_cache_dtype=kind, deterministic=deterministic)
        if kind == "auto":
            for layer in runner._decoder._layers:
                layer.attention._kv_write = rounding(layer.attention._kv_write)
                layer.attention._rope_kv_write = rounding(layer.attention._rope_kv_write)
        logits, driver = record_logits(runner), drive(runner)
        row = driver.add(PROMPT, SCORED)
        driver.step({row: 30})
        driver.step({row: 15})
        driver.step({row: 1})
        found.append(torch.cat(logits))
    assert torch.equal(*found)


def test_rows_read_a_copied_block_as_its_source(open_runner: Any, drive: Any, record_logits: Any) -> None:
    runner = open_runner(kv_cache_dtype="fp8", deterministic=True)
    logits, driver = record_logits(runner), drive(runner)
    first = driver.add(PROMPT[:8])
    driver.step({first: 8})
    driver.step({first: 1}, copies=((driver.sequences[first].blocks[0], 100),))
    second = driver.add(PROMPT[:8], shared=(100,))
    driver.step({second: 4})
    assert torch.equal(logits[0], logits[2])
