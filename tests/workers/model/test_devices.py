"""Which device a rank computes on, and what follows from it by itself."""

from __future__ import annotations

import pytest
import torch

from protocol.errors import InvalidRequest
from workers.engine_config import EngineConfig
from workers.model.devices import choose_device

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_a_machine_without_a_gpu_computes_on_its_cpu() -> None:
    assert choose_device("auto", rank=1) == torch.device("cpu")


@without_gpu
def test_a_gpu_that_is_not_there_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match="install a driver and a torch with CUDA, or set device to cpu"):
        choose_device("cuda", rank=0)


def test_a_cpu_may_be_asked_for_beside_a_gpu() -> None:
    assert choose_device("cpu", rank=0) == torch.device("cpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="device must be one of auto, cpu, cuda"):
        EngineConfig(device="tpu")


def test_a_gpus_blocks_are_larger_unless_a_size_was_asked_for() -> None:
    assert [EngineConfig().block_size_on(device) for device in ("cpu", "cuda")] == [16, 64]
    assert EngineConfig(block_size=32).block_size_on("cuda") == 32
