"""How a runner for GPUs ends, also while a step waits for a rank that is gone, and when its GPU is in error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.model.cuda_runner import CudaRunner
from workers.model.runner_config import RunnerConfig
from workers.tensor_parallel import TensorParallelGroup


class WatchedGroup(TensorParallelGroup):
    def __init__(self, ended: list[str]) -> None:
        super().__init__()
        self._ended = ended

    def close(self) -> None:
        self._ended.append("group")


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def runner(
    ended: list[str], make_checkpoint: Callable[[str], Path], plain_kernels: Any, cpu_device: Any
) -> CudaRunner:
    device = cpu_device(1 << 30)
    device.drop_graphs = lambda: ended.append("graphs")
    config = RunnerConfig(make_checkpoint("untied_llama3"), "float32", kv_cache_memory_bytes=4 << 20)
    opened = CudaRunner(config, WatchedGroup(ended), device, select_kernels=plain_kernels)
    device.mark = lambda: SimpleNamespace(wait=lambda: ended.append("steps"))
    return opened


def test_graphs_go_before_the_group_and_the_group_before_the_steps_that_wait_in_it(
    runner: CudaRunner, ended: list[str]
) -> None:
    """NCCL's communicator waits for the graphs that it was captured in, and a step for its communicator's end."""
    runner.close()
    assert ended == ["graphs", "group", "steps"]
    assert not runner._pool


def test_of_a_gpu_in_error_nothing_is_given_back(
    runner: CudaRunner, ended: list[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """There torch ends the process, before anybody has been told why."""

    def fail() -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(runner._device, "mark", fail)
    runner.close()
    assert ended == [] and runner._pool
    assert "illegal memory access" in caplog.text
