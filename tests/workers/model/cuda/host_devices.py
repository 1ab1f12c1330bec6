"""Devices for the runner without a GPU: one that does everything at once, and one that finds hasty reading."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from workers.model.cuda.device import DeviceMemory, Event, Replay


class Done:
    """The event of a device that does everything at once."""

    def wait(self) -> None:
        """It has been done."""


class PlainDevice:
    """A CPU's tensors. A graph of it calls the same function again."""

    def __init__(self, memory_bytes: int) -> None:
        self.torch_device = torch.device("cpu")
        self.num_processors = 1
        self._memory_bytes = memory_bytes

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def host_memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def upload(self, source: Tensor, target: Tensor) -> Event:
        target.copy_(source)
        return Done()

    def download(self, source: Tensor, target: Tensor) -> Event:
        target.copy_(source)
        return Done()

    def await_downloads(self) -> None:
        """None is under way."""

    def mark(self) -> Event:
        return Done()

    def capture(self, run: Callable[[], None]) -> Replay:
        run()
        return run

    def drop_graphs(self) -> None:
        """There are none."""

    def memory(self) -> DeviceMemory:
        return DeviceMemory(self._memory_bytes, self._memory_bytes)

    def peak_bytes(self, run: Callable[[], None]) -> int:
        """A CPU's memory is not counted: 0."""
        run()
        return 0


class HastyReading(AssertionError):
    """Memory was written, or read, while a copy of it was under way."""


class _Copy:
    """Under way until somebody waits for it."""

    def __init__(self, source: Tensor, finish: Callable[[Tensor], None]) -> None:
        self.source, self.held = source, source.clone()
        self.finish = finish
        self.done = False
        self.may_change = False  # what writes to the source later waits for this by itself

    @torch.inference_mode()
    def wait(self) -> None:
        if self.done:
            return
        if not self.may_change and not torch.equal(self.source, self.held):
            raise HastyReading("a copy's source was written before it had been read")
        self.finish(self.held)
        self.done = True


class StrictDevice(PlainDevice):
    """What a copy brings is nowhere to be seen before its event was waited for, and its source may not change."""

    def __init__(self, memory_bytes: int = 64 << 20) -> None:
        super().__init__(memory_bytes)
        self.num_uploads = 0
        self.num_graphs = 0
        self.num_replays = 0
        self._uploads: dict[int, _Copy] = {}
        self._downloads: list[_Copy] = []

    def upload(self, source: Tensor, target: Tensor) -> Event:
        before = self._uploads.get(source.data_ptr())
        if before is not None and not before.done:
            raise HastyReading("a staging buffer was written again before its copy was waited for")
        target.copy_(source)
        self.num_uploads += 1
        copy = self._uploads[source.data_ptr()] = _Copy(source, lambda _: None)
        return copy

    def download(self, source: Tensor, target: Tensor) -> Event:
        target.fill_(-1)
        copy = _Copy(source, target.copy_)
        self._downloads = [*(each for each in self._downloads if not each.done), copy]
        return copy

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_graphs += 1
        run()

        def replay() -> None:
            self.num_replays += 1
            run()

        return replay

    def await_downloads(self) -> None:
        for each in self._downloads:
            each.may_change = True
