"""What the runner needs of a device beyond tensors: one queue of work, copies beside it, graphs, and how much memory
there is. `cuda_device.py` is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Replay = Callable[[], None]


class Event(Protocol):
    """A point in a device's queue."""

    def wait(self) -> None:
        """Blocks the host until everything before it has been done."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    free_bytes: int
    total_bytes: int


class Device(Protocol):
    """All that is launched within `active` runs in the order of its launch."""

    torch_device: torch.device
    num_processors: int  # programs that run at a time, about

    def active(self) -> AbstractContextManager[None]: ...

    def host_memory(self, num_bytes: int) -> Tensor:
        """Bytes that copies to and from the device need not stage: [num_bytes] uint8."""
        ...

    def upload(self, source: Tensor, target: Tensor) -> Event:
        """Copy from the host in the queue's order. The event: `source` may be written again."""
        ...

    def download(self, source: Tensor, target: Tensor) -> Event:
        """Copy to the host what is launched so far, beside what is launched next. The event: `target` may be read."""
        ...

    def await_downloads(self) -> None:
        """What is launched from here on may write what downloads read: it runs behind them. The host does not wait."""
        ...

    def mark(self) -> Event:
        """All that is launched so far."""
        ...

    def capture(self, run: Callable[[], None]) -> Replay:
        """Launch once for warm-up, then record what it launches: a replay launches it again, on the same memory."""
        ...

    def drop_graphs(self) -> None:
        """Whoever holds a replay must not call it any more. What is under way runs to its end."""
        ...

    def memory(self) -> DeviceMemory: ...

    def peak_bytes(self, run: Callable[[], None]) -> int:
        """How much more memory than before is in use while it runs."""
        ...
