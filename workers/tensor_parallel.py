"""The ranks of one replica and what they exchange within a step: sums, and the logits' parts.

gloo over TCP between CPUs, NCCL between GPUs, in a process group of its own: nothing here touches torch.distributed's
global default group, so two replicas can live in one process. A group of one exchanges nothing and costs nothing.
"""

from __future__ import annotations

from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllreduceOptions, BroadcastOptions, GatherOptions

from workers.process_groups import join_store, make_gloo, make_nccl
from workers.shard import Shard

if TYPE_CHECKING:
    from workers.peer_sums import PeerSums  # with its kernel it brings triton

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
        """`in_rank_order`: sums have the same bits wherever in a tensor they stand; long ones are slower for it.

        `device`: where the group's tensors lie. A GPU's exchange is launched like a kernel, and graphs may hold it.
        """
        self.shard = shard or Shard()
        self.device = device
        self._in_rank_order = in_rank_order
        self._process_group = process_group  # of gloo or NCCL, whose stubs lack what they can do
        self._peer_sums: PeerSums | None = None
        assert (process_group is None) == (self.size == 1), "several ranks need a process group, one has none"

    @property
    def rank(self) -> int:
        return self.shard.rank

    @property
    def size(self) -> int:
        return self.shard.size

    def use(self, peer_sums: PeerSums | None) -> None:
        """For the sums that they take; owned from here on. On all ranks or on none."""
        self._peer_sums = peer_sums

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self._process_group is None:
            return x
        if self._peer_sums is not None and self._peer_sums.takes(x):
            return self._peer_sums.add_up(x)
        # A sum of two has but one order and, in bf16 and fp16, one rounding: of NCCL's algorithms only NVLS adds
        # elsewhere than in a GPU, and NCCL leaves it off where no more than two GPUs take part.
        if self._in_rank_order and self.size > 2:
            everybodys = self.gather_everywhere(x)
            return reduce(Tensor.add_, everybodys[1:], x.copy_(everybodys[0]))
        _finish(self._process_group.allreduce([x], _now(AllreduceOptions())))
        return x

    def gather(self, x: Tensor) -> Tensor | None:
        """Every rank's part side by side along the last axis, on rank 0; None elsewhere. The parts are equally wide."""
        if self._process_group is None:
            return x
        options, outputs = _now(GatherOptions()), list[list[Tensor]]()
        options.rootRank = 0
        if self.rank == 0:
            outputs.append(
                [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
            )
        _finish(self._process_group.gather(outputs, [x.contiguous()], options))
        return torch.cat(outputs[0], -1) if outputs else None

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's values, in place."""
        if self._process_group is not None:
            options = _now(BroadcastOptions())
            options.rootRank = 0
            _finish(self._process_group.broadcast([x], options))
        return x

    def gather_everywhere(self, x: Tensor) -> Tensor:  # -> [ranks, *x.shape]
        """Every rank's, on all ranks."""
        if self._process_group is None:
            return x[None]
        everybodys = x.new_empty(self.size * x.numel())
        flat = x.contiguous().view(-1)
        _finish(self._process_group._allgather_base(everybodys, flat, _now(AllgatherOptions())))
        return everybodys.view(self.size, *x.shape)

    def minimum(self, value: int) -> int:
        """The smallest of every rank's values, on all ranks."""
        return int(self.gather_everywhere(torch.tensor([value], device=self.device)).min())

    def close(self) -> None:
        """At once, even where a rank never comes: whatever still waits for one ends, and is no sum then. A rank that
        waits for this one fails at once on CPUs; on GPUs it waits until it is closed itself, or its time is up."""
        if self._process_group is None:
            return
        if self._peer_sums is not None:
            self._peer_sums.interrupt()
        if self.device.type == "cpu":
            self._process_group.shutdown()
        else:
            self._process_group.abort()  # NCCL's shutdown waits for the other ranks
        self._process_group = None
        if self._peer_sums is not None:
            self._peer_sums.close()
            self._peer_sums = None


def _now(options: Any) -> Any:
    """NCCL launches on the caller's stream, like any kernel, and not beside it on one of its own."""
    options.asyncOp = False
    return options


def _finish(work: Any) -> None:
    """gloo's is still under way; of NCCL's that was launched on the caller's stream there is nothing to wait for."""
    if work is not None:
        work.wait()


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
    store = join_store(rank, size, host, port, timeout)
    shard = Shard(rank, size)
    if device.type == "cpu":
        exchange = make_gloo(store, rank, size, timeout, host)
        return TensorParallelGroup(shard, exchange, in_rank_order, device)
    from workers.nvlink_peers import NvlinkPeers
    from workers.peer_sums import open_peer_sums

    with torch.cuda.device(device):
        group = TensorParallelGroup(shard, make_nccl(store, rank, size, timeout), in_rank_order, device)
        group.use(open_peer_sums(group, store, NvlinkPeers(device), in_rank_order, timeout_s))
    return group
