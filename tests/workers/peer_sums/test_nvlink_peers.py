"""Which GPUs are joined by NVLink, as the driver's library tells it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from workers.nvlink_peers import NvlinkPeers

_NOT_FOUND, _NOT_SUPPORTED = 6, 1


@dataclass
class FakeNvml:
    """Of a machine whose GPUs are these, and those joined that are written one after the other."""

    gpus: tuple[str, ...]
    joined: tuple[str, ...]
    open: int = 0

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        if name.decode() not in self.gpus:
            return _NOT_FOUND
        handle._obj.value = 1 + self.gpus.index(name.decode())
        return 0

    def nvmlDeviceGetP2PStatus(self, own: Any, other: Any, capability: int, status: Any) -> int:
        pair = self.gpus[own.value - 1] + self.gpus[other.value - 1]
        status._obj.value = 0 if capability == 2 and pair in self.joined else _NOT_SUPPORTED
        return 0


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeNvml], FakeNvml]:
    def install(nvml: FakeNvml) -> FakeNvml:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
        return nvml

    return install


@pytest.fixture
def peers() -> NvlinkPeers:
    return NvlinkPeers(torch.device("cuda", 0))


def test_gpus_that_are_all_joined_will_do(install: Any, peers: NvlinkPeers) -> None:
    nvml = install(FakeNvml(("a", "b", "c"), ("ab", "ac")))
    peers.require_links("a", ["b", "c"])
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("nvml", "why"),
    (
        (FakeNvml(("a", "b", "c"), ("ab",)), "no NVLink joins a and c"),
        (FakeNvml(("a", "b"), ("ab",)), "c is not of this machine"),
    ),
    ids=("PCIe", "another machine"),
)
def test_one_gpu_that_is_not_joined_is_enough(
    nvml: FakeNvml, why: str, install: Any, peers: NvlinkPeers
) -> None:
    install(nvml)
    with pytest.raises(RuntimeError, match=why):
        peers.require_links("a", ["b", "c"])
    assert nvml.open == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_there_are_no_links(peers: NvlinkPeers) -> None:
    with pytest.raises(OSError, match="nvidia-ml"):
        peers.require_links("a", ["b"])
