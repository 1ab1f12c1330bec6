"""All numbers of one step, packed into one piece of host memory and sent to the device by one copy.

    begin -> put, put, room ... -> send                   offsets on the host = offsets on the device

Two pieces of host memory take turns: while the copy of one may still be read, the next step is written into the other.
On the device there is one, because a step's copy waits in the queue for the step before. What is put first, in the same
sizes, lies at the same place in every step: that is where a captured graph reads it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.model.cuda.device import Device, Event

_ALIGNMENT = 16  # bytes: what kernels load at a time
_TORCH_TYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


class Section(NamedTuple):
    """Where numbers of one step lie."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def room_for(num_bytes: int) -> int:
        """What a section of so many bytes takes."""
        return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class StepUpload:
    def __init__(self, device: Device, num_bytes: int) -> None:
        """`num_bytes`: for the largest step, each section rounded up by `Section.room_for`."""
        self._device = device
        self._num_bytes = num_bytes
        self._hosts = [device.host_memory(num_bytes) for _ in range(2)]
        self._arrays = [each.numpy() for each in self._hosts]
        self._sent: list[Event | None] = [None, None]
        self._target = torch.zeros(num_bytes, dtype=torch.uint8, device=device.torch_device)
        self._turn = 0
        self._end = 0

    def begin(self) -> None:
        """A new step. Waits until the piece of host memory that is its turn has been read."""
        self._turn = 1 - self._turn
        sent = self._sent[self._turn]
        if sent is not None:
            sent.wait()
        self._end = 0

    @property
    def left_bytes(self) -> int:
        """Of this step, for sections rounded up."""
        return self._num_bytes - self._end

    def put(self, values: NDArray[Any]) -> Section:
        section, array = self.room(values.shape, values.dtype)
        array[...] = values
        return section

    def room(self, shape: tuple[int, ...], dtype: Any) -> tuple[Section, NDArray[Any]]:
        """To be written before `send`."""
        section = Section(self._end, shape, np.dtype(dtype))
        self._end = section.offset + Section.room_for(section.num_bytes)
        assert self._end <= self._num_bytes, f"a step of over {self._num_bytes} bytes was not expected"
        return section, np.ndarray(shape, section.dtype, self._arrays[self._turn], section.offset)

    def send(self) -> None:
        """Everything that was put since `begin`."""
        host, target = self._hosts[self._turn], self._target
        self._sent[self._turn] = self._device.upload(host[: self._end], target[: self._end])

    def on_device(self, section: Section) -> Tensor:
        """As the step that is sent last has it."""
        flat = self._target[section.offset : section.offset + section.num_bytes]
        return flat.view(_TORCH_TYPES[section.dtype]).view(section.shape)
