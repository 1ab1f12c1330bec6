"""Sums over the ranks of one machine out of each other's memory: for messages that are too small for NCCL to be quick.

Owned by `tensor_parallel.py`, on GPUs. All ranks use it or none does: each step of `open_peer_sums` is agreed upon, and
the first sums are compared with what NCCL carries. Knows nothing of layers, and of CUDA only through `Peers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from kernels.gpu.peer_sum import MOST_RANKS, SUMMED, PeerRegions, region_bytes

log = logging.getLogger(__name__)
T = TypeVar("T")

# One shot moves every rank's numbers to every rank; NCCL moves each number but twice, and wins where time is bandwidth.
_MOST_READ_BYTES = 2 << 20  # by one rank from the others: 2 MiB of two ranks, 292 KiB of eight
_PIECE_BYTES = 8 << 20  # of sums in rank order, which all go this way, however long
_VECTOR_BYTES = 16
_POLLS_PER_S = 1_000_000
_MOST_POLLS = (1 << 31) - 1
_PROBE_S = 20.0
_PROBED_ELEMENTS = 2048  # and as many as fit


class Ranks(Protocol):
    """What a group does without this."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def minimum(self, value: int) -> int: ...

    def gather_everywhere(self, x: Tensor) -> Tensor: ...


class Peers(Protocol):
    """`NvlinkPeers`, or a test's."""

    device: torch.device

    def name(self) -> str: ...

    def require_links(self, own: str, others: list[str]) -> None: ...

    def lend(self, num_bytes: int) -> tuple[Tensor, str]: ...

    def borrow(self, loan: str) -> Tensor: ...

    def sum(self, x: Tensor, regions: PeerRegions, max_polls: int, fails_loudly: bool) -> None: ...

    def interrupt(self, regions: PeerRegions) -> None: ...

    def wait(self) -> None: ...


class PeerSums:
    """One rank's end. All ranks call `add_up` in the same order, on one stream, graphs included."""

    def __init__(
        self,
        peers: Peers,
        regions: PeerRegions,
        most_bytes: int | None,  # of one sum; None: any
        timeout_s: float,
    ) -> None:
        self._peers = peers
        self._regions = regions
        self._most_bytes = most_bytes
        self._max_polls = min(int(timeout_s * _POLLS_PER_S), _MOST_POLLS)

    def takes(self, x: Tensor) -> bool:
        """Told by what is alike on all ranks: size and type."""
        fits = self._most_bytes is None or x.numel() * x.element_size() <= self._most_bytes
        return fits and x.dtype in SUMMED and x.numel() > 0

    def add_up(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place: added in fp32, in the order of the ranks, the same bits on all of them.

        A rank that stays away for `timeout_s` is an error of the device, which the next wait for it raises.
        """
        flat = x.contiguous().view(-1)
        for piece in torch.split(flat, self._regions.half_bytes // x.element_size()):
            self._peers.sum(piece, self._regions, self._max_polls, True)
        return x if flat.data_ptr() == x.data_ptr() else x.copy_(flat.view_as(x))

    def rehearse(self) -> None:
        """Alone, in memory of its own, so that no rank waits for another one's compiler later."""
        own, half_bytes = self._regions.rank, self._regions.half_bytes
        memory = torch.zeros_like(self._regions.memory[own])
        alone = PeerRegions.over(own, [memory] * len(self._regions.memory), half_bytes)
        self._peers.sum(_random(_PROBED_ELEMENTS, 0, memory.device), alone, 0, False)
        self._peers.wait()

    def try_out(self, x: Tensor, parts: Tensor) -> None:
        """Sum x, of which `parts` has every rank's. Raises RuntimeError where ranks or numbers are missing."""
        self._peers.sum(x, self._regions, int(_PROBE_S * _POLLS_PER_S), False)
        self._peers.wait()
        if self._regions.state[2]:
            raise RuntimeError("a rank's signals do not arrive")
        if not torch.equal(x, _in_rank_order(parts).to(x.dtype)):
            raise RuntimeError("sums over memory of other GPUs are wrong")

    def interrupt(self) -> None:
        """Ends what waits for a rank that is gone. No sum is one from here on."""
        with suppress(RuntimeError):  # on a device in error nothing waits
            self._peers.interrupt(self._regions)

    def close(self) -> None:
        """Until nothing of it runs any more; from then on its memory, and the others', may go."""
        with suppress(RuntimeError):  # a device in error waits for nothing
            self._peers.wait()


def open_peer_sums(
    ranks: Ranks, store: Store, peers: Peers, in_rank_order: bool, timeout_s: float
) -> PeerSums | None:
    """None on all ranks, and the reason in the log, where it cannot be had on all of them.

    `in_rank_order`: every sum that can be is to go this way, so that a number's bits do not depend on how many others
    are summed with it.
    """
    try:
        sums = _open(ranks, store, peers, in_rank_order, timeout_s)
    except _CannotBeHad as reason:
        log.info("sums over ranks go through NCCL alone: %s", reason)
        return None
    log.info("%s sums over ranks are made out of each other's memory", "all" if in_rank_order else "short")
    return sums


class _CannotBeHad(Exception):
    """On some rank; all ranks raise it together."""


def _open(ranks: Ranks, store: Store, peers: Peers, in_rank_order: bool, timeout_s: float) -> PeerSums:
    own, num_others = ranks.rank, ranks.size - 1
    names = _exchange(ranks, store, "name", _agreed(ranks, lambda: _name(ranks, peers)))
    _agreed(ranks, lambda: peers.require_links(names[own], [name for name in names if name != names[own]]))
    most_bytes = _MOST_READ_BYTES // num_others
    half_bytes = _PIECE_BYTES if in_rank_order else -(-most_bytes // _VECTOR_BYTES) * _VECTOR_BYTES
    memory, loan = _agreed(ranks, lambda: peers.lend(region_bytes(half_bytes)))
    loans = _exchange(ranks, store, "loan", loan)
    everybodys = _agreed(
        ranks,
        lambda: [memory if rank == own else peers.borrow(each) for rank, each in enumerate(loans)],
    )
    regions = PeerRegions.over(own, everybodys, half_bytes)
    sums = PeerSums(peers, regions, None if in_rank_order else most_bytes, timeout_s)
    _agreed(ranks, sums.rehearse)
    _probe(ranks, sums, half_bytes // torch.bfloat16.itemsize, peers.device)
    return sums


def _name(ranks: Ranks, peers: Peers) -> str:
    if ranks.size > MOST_RANKS:
        raise RuntimeError(f"there are {ranks.size} ranks, and at most {MOST_RANKS} sum this way")
    return peers.name()


def _probe(ranks: Ranks, sums: PeerSums, most_elements: int, device: torch.device) -> None:
    """Each half of the memory is used and used again."""
    sizes = (_PROBED_ELEMENTS, most_elements, most_elements, _PROBED_ELEMENTS)  # halves take turns
    for seed, num_elements in enumerate(sizes):
        x = _random(num_elements, seed * ranks.size + ranks.rank, device)
        parts = ranks.gather_everywhere(x)
        _agreed(ranks, lambda x=x, parts=parts: sums.try_out(x, parts))  # type: ignore[misc]


def _agreed(ranks: Ranks, step: Callable[[], T]) -> T:
    """What the step returns, where it succeeds on all ranks. The step itself must not wait for another rank."""
    try:
        found = step()
    except (
        Exception
    ) as error:  # of drivers, of torch's inner ways, of the compiler: whatever it is, there is NCCL
        ranks.minimum(0)
        raise _CannotBeHad(f"{type(error).__name__}: {error}") from error
    if not ranks.minimum(1):
        raise _CannotBeHad("another rank cannot, and says why")
    return found


def _exchange(ranks: Ranks, store: Store, kind: str, own: str) -> list[str]:
    """Every rank's, in their order."""
    store.set(f"peer sums/{kind}/{ranks.rank}", own)
    return [store.get(f"peer sums/{kind}/{rank}").decode() for rank in range(ranks.size)]


def _random(num_elements: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_elements, generator=generator).to(device, torch.bfloat16)


def _in_rank_order(parts: Tensor) -> Tensor:  # [ranks, elements] -> [elements] fp32
    total = parts[0].float()
    for part in parts[1:]:
        total += part
    return total
