"""The ranks of one replica and what they exchange within a step: sums, and the logits' parts.

gloo over TCP between CPUs, NCCL between GPUs, in a process group of its own: nothing here touches torch.distributed's
global default group, so two replicas can live in one process. A group of one exchanges nothing and costs nothing.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from functools import reduce
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from workers.shard import Shard

_CPU = torch.device("cpu")


class TensorParallelGroup:
    """One rank's end. All ranks call the same methods in the same order."""

    def __init__(
        self,
        shard: Shard | None = None,
        process_group: Any = None,
        in_rank_order: bool = False,
        device: torch.device = _CPU,
    ) -> None:
        """`in_rank_order`: sums have the same bits wherever in a tensor they stand; slower from three ranks on.

        `device`: where the group's tensors lie. A GPU's exchange is launched like a kernel, and graphs may hold it.
        """
        self.shard = shard or Shard()
        self._device = device
        self._in_rank_order = in_rank_order
        self._process_group = process_group  # of gloo or NCCL, whose stubs lack what they can do
        assert (process_group is None) == (self.size == 1), "several ranks need a process group, one has none"

    @property
    def rank(self) -> int:
        return self.shard.rank

    @property
    def size(self) -> int:
        return self.shard.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self._process_group is None:
            return x
        if self._in_rank_order and self.size > 2:  # a sum of two has but one order
            parts = self._all_gather(x)
            return reduce(Tensor.add_, parts[1:], x.copy_(parts[0]))
        self._process_group.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> Tensor | None:
        """Every rank's part side by side along the last axis, on rank 0; None elsewhere. The parts are equally wide."""
        if self._process_group is None:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        self._process_group.gather(parts, x.contiguous(), 0).wait()
        return torch.cat(parts, -1) if parts else None

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's values, in place."""
        if self._process_group is not None:
            self._process_group.broadcast(x, 0).wait()
        return x

    def gather_everywhere(self, x: Tensor) -> Tensor:  # -> [ranks, *x.shape]
        """Every rank's, on all ranks."""
        return x[None] if self._process_group is None else torch.stack(self._all_gather(x))

    def minimum(self, value: int) -> int:
        """The smallest of every rank's values, on all ranks."""
        if self._process_group is None:
            return value
        return min(int(each) for each in self._all_gather(torch.tensor([value], device=self._device)))

    def _all_gather(self, x: Tensor) -> list[Tensor]:
        everybody = [torch.empty_like(x) for _ in range(self.size)]
        self._process_group.allgather([everybody], [x]).wait()
        return everybody

    def close(self) -> None:
        """Close the connections; a rank that waits for this one then fails at once."""
        if self._process_group is not None:
            self._process_group.shutdown()
            self._process_group = None


def connect_group(
    rank: int,
    size: int,
    host: str,
    port: int,
    timeout_s: float,
    in_rank_order: bool = False,
    device: torch.device = _CPU,
) -> TensorParallelGroup:
    """Meet the other ranks at rank 0's `host` and `port`. `timeout_s` also bounds each exchange afterwards."""
    if size == 1:
        return TensorParallelGroup(device=device)
    timeout = timedelta(seconds=timeout_s)
    store = _join_store(rank, size, host, port, timeout)
    if device.type == "cpu":
        exchange = _gloo(store, rank, size, timeout, _own_address(host, port))
    else:
        exchange = _nccl(store, rank, size, timeout)
    return TensorParallelGroup(Shard(rank, size), exchange, in_rank_order, device)


def _gloo(store: TCPStore, rank: int, size: int, timeout: timedelta, own_address: str) -> Any:
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=own_address)]
    options._timeout = timeout
    return gloo(store, rank, size, options)


def _nccl(store: TCPStore, rank: int, size: int, timeout: timedelta) -> Any:
    """Its first exchange makes the connections, long before a graph is captured."""
    nccl: Any = vars(distributed)["ProcessGroupNCCL"]  # a torch for CPUs has none
    options = nccl.Options()
    options._timeout = timeout
    return nccl(store, rank, size, options)


def _join_store(rank: int, size: int, host: str, port: int, timeout: timedelta) -> TCPStore:
    """Rank 0 hands the store a socket of its own, because by itself the store would listen on every address."""
    if rank > 0:
        return TCPStore(host, port, size, is_master=False, timeout=timeout)
    listener = socket.create_server((host, port))
    return TCPStore(
        host,
        port,
        size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _own_address(host: str, port: int) -> str:
    """The address from which this machine reaches `host`. No packet is sent."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return address
