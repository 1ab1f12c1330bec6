"""GPUs with a memory that all of them reach, by threads of one process, and groups of ranks that sum through it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

if find_spec("triton") is None:
    collect_ignore_glob = ["*.py"]
else:
    from kernels.gpu.peer_sum import SIGNAL_BYTES, PeerRegions
    from workers.peer_sums import PeerSums, open_peer_sums
from workers.rank_link import free_port
from workers.tensor_parallel import TensorParallelGroup, connect_group

T = TypeVar("T")


@dataclass
class Machine:
    patience_s: float = 30.0
    loans: dict[str, Tensor] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)


@dataclass
class MachinePeers:
    """One rank's. Sums as the kernel does, rounds, halves and signals included."""

    machine: Machine
    rank: int
    fails_at: str = ""  # one of the methods, or "signals", or "numbers"
    device = torch.device("cpu")
    summed: list[int] = field(default_factory=list)  # bytes of each sum, those of the trial included

    def _do(self, what: str) -> None:
        if self.fails_at == what:
            raise OSError(f"rank {self.rank} has no {what}")

    def name(self) -> str:
        self._do("name")
        return f"GPU-{self.rank}"

    def require_links(self, own: str, others: list[str]) -> None:
        self._do("links")
        assert own == f"GPU-{self.rank}" and own not in others

    def lend(self, num_bytes: int) -> tuple[Tensor, str]:
        self._do("memory")
        memory = torch.zeros(num_bytes, dtype=torch.uint8)
        loan = str(memory.data_ptr())
        self.machine.loans[loan] = memory
        return memory, loan

    def borrow(self, loan: str) -> Tensor:
        self._do("way to others")
        return self.machine.loans[loan]

    def sum(self, x: Tensor, regions: PeerRegions, max_polls: int, fails_loudly: bool) -> None:
        self._do("kernel")
        self.summed.append(x.numel() * x.element_size())
        with self.machine.changed:
            round = int(regions.state[0]) + 1
            halves = [_half(each, round, regions.half_bytes, x) for each in regions.memory]
            halves[self.rank].copy_(x)
            if self.fails_at != "signals":
                for each in regions.memory:
                    _signals(each)[self.rank] = round
                self.machine.changed.notify_all()
            signals = _signals(regions.memory[self.rank])[: len(halves)]
            wait_s = self.machine.patience_s if max_polls else 0.0
            if not self.machine.changed.wait_for(
                lambda: bool((signals >= round).all()) or bool(regions.state[2]), wait_s
            ):
                regions.state[2] = 1
                assert not fails_loudly, "a rank is silent"
            x.copy_(torch.stack([each.float() for each in halves]).sum(0))
            regions.state[0] = round
        if self.fails_at == "numbers":
            x[-1] += 1

    def interrupt(self, regions: PeerRegions) -> None:
        with self.machine.changed:
            regions.state[2] = 1
            self.machine.changed.notify_all()

    def wait(self) -> None:
        """Everything is done at once."""


def _signals(memory: Tensor) -> Tensor:
    return memory[:SIGNAL_BYTES].view(torch.int64)


def _half(memory: Tensor, round: int, half_bytes: int, like: Tensor) -> Tensor:
    first = SIGNAL_BYTES + round % 2 * half_bytes
    return memory[first : first + half_bytes].view(like.dtype)[: len(like)]


@dataclass
class Team:
    groups: list[TensorParallelGroup]
    peers: list[MachinePeers]
    sums: list[PeerSums | None]
    threads: ThreadPoolExecutor

    def all(self, run: Callable[[int], T]) -> list[T]:
        """By all ranks at the same time."""
        return list(self.threads.map(run, range(len(self.groups))))

    def all_reduce(self, summands: list[Tensor]) -> list[Tensor]:
        return self.all(lambda rank: self.groups[rank].all_reduce(summands[rank]))


@contextmanager
def _open_team(num_ranks: int, in_rank_order: bool = False, fails_at: str = "") -> Iterator[Team]:
    """`fails_at`: what the last rank lacks."""
    port, store, machine = (
        free_port("127.0.0.1"),
        HashStore(),
        Machine(0.2 if fails_at == "signals" else 30.0),
    )
    peers = [
        MachinePeers(machine, rank, fails_at if rank == num_ranks - 1 else "") for rank in range(num_ranks)
    ]

    def connect(rank: int) -> tuple[TensorParallelGroup, PeerSums | None]:
        group = connect_group(rank, num_ranks, "127.0.0.1", port, 30.0, in_rank_order)
        sums = open_peer_sums(group, store, peers[rank], in_rank_order, 30.0)
        group.use(sums)
        return group, sums

    with ThreadPoolExecutor(num_ranks) as threads:
        groups, sums = zip(*threads.map(connect, range(num_ranks)), strict=True)
        yield Team(list(groups), peers, list(sums), threads)
        for group in groups:
            group.close()


@pytest.fixture
def open_team() -> Callable[..., AbstractContextManager[Team]]:
    return _open_team


@pytest.fixture
def trio() -> Iterator[Team]:
    with _open_team(3) as team:
        yield team


@pytest.fixture
def orderly_trio() -> Iterator[Team]:
    with _open_team(3, in_rank_order=True) as team:
        yield team


@pytest.fixture
def peers() -> MachinePeers:
    """Of a rank that knows no other."""
    return MachinePeers(Machine(), 0)
