"""One GPU of several that sum out of each other's memory, at once and in graphs. Started by `test_peer_sums.py`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from workers.model.cuda.cuda_device import CudaDevice
from workers.tensor_parallel import TensorParallelGroup, connect_group

SIZES = (1, 4096, 12345, 1 << 20, (5 << 20) + 8)  # bf16: the last in pieces, or by NCCL


def main(rank: int, num_ranks: int, port: int, in_rank_order: bool) -> None:
    torch.manual_seed(rank)
    device = CudaDevice(torch.device("cuda", rank))
    with device.active():
        group = connect_group(
            rank, num_ranks, "127.0.0.1", port, 60.0, in_rank_order, torch.device("cuda", rank)
        )
        for size in SIZES:
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                check(group, torch.randn(size, device=device.torch_device).to(dtype))
        replayed = [
            torch.zeros(4096 * rows, dtype=torch.bfloat16, device=device.torch_device) for rows in (1, 3, 64)
        ]

        def all_reduce() -> None:
            for x in replayed:
                group.all_reduce(x)

        replay = device.capture(all_reduce)
        for _ in range(50):
            for x in replayed:
                x.normal_()
            expected = [in_order(group.gather_everywhere(x)) for x in replayed]
            replay()
            assert all(close(x, each) for x, each in zip(replayed, expected, strict=True))
    device.drop_graphs()
    group.close()


def check(group: TensorParallelGroup, x: Tensor) -> None:
    expected = in_order(group.gather_everywhere(x))
    assert close(group.all_reduce(x), expected), f"{x.numel()} of {x.dtype}"
    everybodys = group.gather_everywhere(x)
    assert all(torch.equal(each, x) for each in everybodys), "ranks have different sums"


def in_order(parts: Tensor) -> Tensor:
    return parts.float().sum(0)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.float(), expected, rtol=2e-2, atol=2e-2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1")
