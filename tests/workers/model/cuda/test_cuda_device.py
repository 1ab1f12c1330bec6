"""What torch.cuda is asked for, by one without a GPU: most of it when a graph is captured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from workers.model.cuda.cuda_device import CudaDevice


@dataclass
class Capturing:
    """torch's rules: a pool is recorded to until a capture ends well, and what broke a capture breaks its end.

    `current`: what is entered, the device or a stream of it.
    """

    recording: set[int] = field(default_factory=set)
    num_pools: int = 0
    pool: int | None = None
    broken: bool = False
    current: list[str] = field(default_factory=list)

    @contextmanager
    def entered(self, what: str) -> Iterator[None]:
        self.current.append(what)
        yield
        self.current.pop()

    def new_pool(self) -> int:
        self.num_pools += 1
        return self.num_pools

    def begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local", "other threads would break the capture"
        if pool in self.recording:
            raise RuntimeError("already recording to mempool_id")
        self.recording.add(pool)
        self.pool, self.broken = pool, False

    def end(self) -> None:
        if self.pool is None or self.broken:
            self.pool = None
            raise RuntimeError("operation failed due to a previous error during capture")
        self.recording.remove(self.pool)
        self.pool = None


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Capturing:
    found = Capturing()

    def stream(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: None)

    def graph() -> SimpleNamespace:
        return SimpleNamespace(capture_begin=found.begin, capture_end=found.end, replay=lambda: None)

    for name, fake in {
        "Stream": stream,
        "CUDAGraph": graph,
        "device": lambda device: found.entered("device"),
        "stream": lambda stream: found.entered("stream"),
        "graph_pool_handle": found.new_pool,
        "get_device_properties": lambda device: SimpleNamespace(multi_processor_count=132),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


@pytest.fixture
def device(capturing: Capturing) -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


def breaking(capturing: Capturing, error: Exception | None) -> Callable[[], None]:
    """Runs when it warms up, and breaks the capture, loudly or not."""

    def run() -> None:
        if capturing.pool is not None:
            capturing.broken = True
            if error is not None:
                raise error

    return run


def test_the_device_is_current_before_its_stream_is_and_after(
    capturing: Capturing, device: CudaDevice
) -> None:
    """Else the stream's end would make another device the current one, and torch a context there."""
    with device.active():
        assert capturing.current == ["device", "stream"]


def test_what_broke_a_capture_is_told_and_not_that_it_is_broken(
    capturing: Capturing, device: CudaDevice
) -> None:
    with pytest.raises(RuntimeError, match=r"aten\.item"):
        device.capture(breaking(capturing, RuntimeError("aten.item waits")))


@pytest.mark.parametrize("error", (RuntimeError("aten.item waits"), None), ids=("loudly", "in silence"))
def test_a_graph_is_captured_behind_one_that_broke(
    error: Exception | None, capturing: Capturing, device: CudaDevice
) -> None:
    with pytest.raises(RuntimeError):
        device.capture(breaking(capturing, error))
    device.capture(lambda: None)
    device.capture(lambda: None)
    assert capturing.num_pools == 2, "graphs share what memory they can"


def test_no_garbage_is_collected_within_a_capture(capturing: Capturing, device: CudaDevice) -> None:
    seen: list[tuple[bool, bool]] = []
    device.capture(lambda: seen.append((capturing.pool is not None, gc.isenabled())))
    assert seen == [(False, True), (True, False)]
    assert gc.isenabled()
