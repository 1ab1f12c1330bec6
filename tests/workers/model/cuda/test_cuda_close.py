"""How a runner for GPUs ends, also while a step waits for a rank that is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.model.cuda.device import Done, PlainDevice
from workers.model.cuda_runner import CudaRunner
from workers.model.runner_config import RunnerConfig
from workers.tensor_parallel import TensorParallelGroup


class WatchedDevice(PlainDevice):
    def __init__(self, ended: list[str]) -> None:
        super().__init__(1 << 30)
        self._ended = ended

    def drop_graphs(self) -> None:
        self._ended.append("graphs")

    def mark(self) -> Done:
        self._ended.append("steps")
        return Done()


class WatchedGroup(TensorParallelGroup):
    def __init__(self, ended: list[str]) -> None:
        super().__init__()
        self._ended = ended

    def close(self) -> None:
        self._ended.append("group")


def test_graphs_go_before_the_group_and_the_group_before_the_steps_that_wait_in_it(
    make_checkpoint: Callable[[str], Path], plain_kernels: Any
) -> None:
    """NCCL's communicator waits for the graphs that it was captured in, and a step for its communicator's end."""
    ended: list[str] = []
    config = RunnerConfig(make_checkpoint("untied_llama3"), "float32", kv_cache_memory_bytes=4 << 20)
    runner = CudaRunner(config, WatchedGroup(ended), WatchedDevice(ended), select_kernels=plain_kernels)
    ended.clear()
    runner.close()
    assert ended == ["graphs", "group", "steps"]
