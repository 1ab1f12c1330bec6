"""How a GPU's memory is divided, what is said of it, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from protocol.errors import InvalidRequest
from workers.model.cuda.device import DeviceMemory
from workers.model.cuda.graph_sizes import graph_keys, graph_sizes
from workers.model.cuda.memory_budget import MemoryBudget
from workers.runner import RunnerFacts

GIB = 1 << 30


@pytest.fixture
def budget() -> MemoryBudget:
    before, loaded = DeviceMemory(78 * GIB, 80 * GIB), DeviceMemory(62 * GIB, 80 * GIB)
    return MemoryBudget.of(0.9, before, loaded, step_bytes=3 * GIB, graph_step_bytes=GIB, num_graphs=256)


def test_the_pool_gets_what_the_rest_leaves(budget: MemoryBudget) -> None:
    assert budget.pool_bytes(None) == (72 - 2 - 16 - 3 - 2) * GIB


def test_a_share_that_is_too_small_leaves_nothing(budget: MemoryBudget) -> None:
    before, loaded = DeviceMemory(78 * GIB, 80 * GIB), DeviceMemory(62 * GIB, 80 * GIB)
    assert MemoryBudget.of(0.2, before, loaded, 3 * GIB, GIB, 256).pool_bytes(None) == 0


def test_a_size_that_was_asked_for_may_exceed_the_share_but_not_the_memory(budget: MemoryBudget) -> None:
    assert budget.pool_bytes(56 * GIB) == 56 * GIB
    with pytest.raises(InvalidRequest, match=r"asks for 58\.00 GiB of a GPU that has 57\.00 GiB left"):
        budget.pool_bytes(58 * GIB)


def test_the_log_says_where_the_memory_went(budget: MemoryBudget) -> None:
    facts = RunnerFacts(40, 64, 100, 10, ())
    assert budget.describe(facts, "bfloat16", GIB, graphs_bytes=GIB // 2, free_bytes=21 * GIB) == (
        "GPU memory of 80.00 GiB: 2.00 GiB in use before, weights 16.00 GiB, pool 40.00 GiB (40 blocks of 64 tokens in"
        " bfloat16), graphs 0.50 GiB, 21.00 GiB free, of which a step takes 3.00 GiB"
    )


def test_a_runner_takes_its_share_and_logs_it(open_cuda_runner: Any, strict_device: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        runner = open_cuda_runner(
            device=strict_device(64 << 20), kv_cache_memory_bytes=None, gpu_memory_utilization=0.95
        )
    used = sum(kv.nbytes for kv in runner._pool)
    assert 0.2 * (64 << 20) < used < 0.95 * (64 << 20)
    assert f"({runner.facts.num_blocks} blocks of 4 tokens in float32)" in caplog.text


def test_the_pool_is_as_much_smaller_as_a_share_is_and_as_steps_and_graphs_are_larger(
    open_cuda_runner: Any, strict_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pool_bytes(peak_bytes: int, **config: Any) -> int:
        monkeypatch.setattr(strict_device, "peak_bytes", lambda device, run: run() or peak_bytes)
        runner = open_cuda_runner(device=strict_device(128 << 20), kv_cache_memory_bytes=None, **config)
        return sum(kv.nbytes for kv in runner._pool)

    most = pool_bytes(1 << 20, enforce_eager=True)
    for less, peak_bytes, config in (
        (2 << 20, 3 << 20, {"enforce_eager": True}),
        ((1 << 20) + 8 * (4 << 20), 1 << 20, {}),  # graphs of 1, 2, 4 and 8 rows, and their draws
        (32 << 20, 1 << 20, {"enforce_eager": True, "gpu_memory_utilization": 0.65}),
    ):
        assert most - pool_bytes(peak_bytes, **config) == pytest.approx(less, abs=1 << 14)


def test_a_gpu_that_is_too_small_is_said_with_what_to_do(open_cuda_runner: Any, strict_device: Any) -> None:
    with pytest.raises(InvalidRequest, match="lower max_model_len or raise gpu_memory_utilization"):
        open_cuda_runner(device=strict_device(1 << 20), kv_cache_memory_bytes=None)


def test_weights_that_do_not_fit_are_refused_with_what_to_do(open_cuda_runner: Any) -> None:
    def too_large(*_: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    with pytest.raises(InvalidRequest, match=r"by tensor_parallel_size, or lower .*tried to allocate"):
        open_cuda_runner(select_kernels=too_large)


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    (
        (1, (1,)),
        (3, (1, 2, 4)),
        (30, (1, 2, 4, 8, 16, 24, 32)),
        (50, (1, 2, 4, 8, 16, 24, 32, 48, 64)),
    ),
)
def test_graphs_are_captured_for_as_many_rows_as_may_run(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(max_rows) == sizes
    assert graph_sizes(1000)[-1] == 256


def test_graphs_are_captured_for_ever_longer_rows() -> None:
    assert graph_keys(100) == (100,)
    assert graph_keys(2048) == (2048,)
    assert graph_keys(131_072) == (2048, 8192, 32_768, 131_072)
