"""What ranks exchange through: a store to meet at, and torch's own process groups, of gloo or NCCL.

Called by `tensor_parallel.py`. Nothing here becomes torch.distributed's global default group.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

# When an exchange takes longer than its timeout, or the GPU fails, torch ends the process, which may be the user's own.
# So it ends the group only, and whoever waits is told. Read when a group is made: other groups keep their ways.
_FAILURES_ARE_RAISED = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "2", "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0"}
_ANY_PORT = 1


def join_store(rank: int, size: int, host: str, port: int, timeout: timedelta) -> TCPStore:
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


def make_gloo(store: TCPStore, rank: int, size: int, timeout: timedelta, host: str) -> Any:
    """Over the interface that reaches rank 0's `host`."""
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=_own_address(host))]
    options._timeout = timeout
    return gloo(store, rank, size, options)


def make_nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """Its first exchange makes the connections, long before a graph is captured."""
    nccl: Any = vars(distributed)["ProcessGroupNCCL"]  # a torch for CPUs has none
    options = nccl.Options()
    options._timeout = timeout
    with _environment(_FAILURES_ARE_RAISED):
        return nccl(store, rank, size, options)


@contextmanager
def _environment(wishes: Mapping[str, str]) -> Iterator[None]:
    """Where nothing else is wished: the user's words stay, and after it everything is as before."""
    missing = wishes.keys() - os.environ.keys()
    os.environ.update({name: wishes[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _own_address(host: str) -> str:
    """The address from which this machine reaches `host`. No packet is sent."""
    family = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, _ANY_PORT))
        address: str = probe.getsockname()[0]
        return address
