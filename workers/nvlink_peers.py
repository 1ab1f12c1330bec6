"""Memory of one GPU that processes with other GPUs of the same machine read and write in place, over NVLink.

Called by `peer_sums.py`, which knows what lies there. Memory is lent as torch.multiprocessing lends it. Whatever cannot
be done raises, and whoever asks then does without: AMD's GPUs, GPUs on several machines or without NVLink among them.
"""

from __future__ import annotations

import ast
import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, UntypedStorage

from kernels.gpu.peer_sum import PeerRegions, peer_sum

_NVLINK, _OK = 2, 0  # NVML_P2P_CAPS_INDEX_NVLINK; NVML_SUCCESS and NVML_P2P_STATUS_OK


class NvlinkPeers:
    """Everything here is this rank's own doing: no method waits for another rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def name(self) -> str:
        """Of this GPU, in all processes, whatever part of the GPUs CUDA_VISIBLE_DEVICES lets them see."""
        return "GPU-" + str(torch.cuda.get_device_properties(self.device).uuid).removeprefix("GPU-")

    def require_links(self, own: str, others: Sequence[str]) -> None:
        """Beyond reads and writes, NVLink carries the atomic operations by which kernels signal each other.

        Raises OSError where no NVIDIA driver is, RuntimeError where a GPU is not linked, or not of this machine.
        """
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        _succeed(nvml.nvmlInit_v2(), "NVML does not start")
        try:
            own_handle = _handle(nvml, own)
            for other in others:
                status = ctypes.c_uint()
                found = nvml.nvmlDeviceGetP2PStatus(
                    own_handle, _handle(nvml, other), _NVLINK, ctypes.byref(status)
                )
                _succeed(found or status.value, f"no NVLink joins {own} and {other}")
        finally:
            nvml.nvmlShutdown()

    def lend(self, num_bytes: int) -> tuple[Tensor, str]:
        """New memory, all zeros, and what others `borrow` it by. It is freed when neither side has it any more."""
        memory = torch.zeros(num_bytes, dtype=torch.uint8, device=self.device)
        torch.cuda.synchronize(self.device)  # zeros, before anybody writes there
        return memory, repr(memory.untyped_storage()._share_cuda_())  # type: ignore[no-untyped-call]

    def borrow(self, loan: str) -> Tensor:
        """Another rank's memory, at an address of this process and as if of this GPU."""
        _, *lent = ast.literal_eval(loan)
        # Opened from this GPU: the owner's own need not be visible to this process.
        storage = UntypedStorage._new_shared_cuda(self.device.index, *lent)
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)

    def sum(self, x: Tensor, regions: PeerRegions, max_polls: int, fails_loudly: bool) -> None:
        peer_sum(x, regions, max_polls, fails_loudly)

    def interrupt(self, regions: PeerRegions) -> None:
        """Beside the stream on which a sum may be waiting."""
        aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(aside):
            regions.state[2] = 1

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def _handle(nvml: ctypes.CDLL, name: str) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _succeed(
        nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)), f"{name} is not of this machine"
    )
    return handle


def _succeed(status: int, otherwise: str) -> None:
    if status != _OK:
        raise RuntimeError(otherwise)
