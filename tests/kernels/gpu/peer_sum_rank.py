"""One rank of several that sum out of a file that they all map. Started by `test_gpu_peer_sum.py`."""

from __future__ import annotations

import random
import sys

import torch

from kernels.gpu.peer_sum import PROGRAMS, PeerRegions, peer_sum, region_bytes

HALF_BYTES = 1 << 19
NUM_SUMS = 15


def main(rank: int, num_ranks: int, path: str) -> None:
    num_bytes = region_bytes(HALF_BYTES)
    memory = torch.from_file(path, shared=True, size=num_ranks * num_bytes, dtype=torch.uint8)
    regions = PeerRegions.over(rank, torch.split(memory, num_bytes), HALF_BYTES)
    draw = random.Random(0)  # the same of all ranks
    for round in range(NUM_SUMS):
        size = draw.choice((1, 2048, 5000, 2048 * (PROGRAMS // 8)))
        generator = torch.Generator().manual_seed(round)
        parts = torch.randn(num_ranks, size, generator=generator)
        x = parts[rank].clone()
        peer_sum(x, regions, max_polls=1_000_000)
        assert torch.equal(x, parts.sum(0)), f"sum {round} of {size} numbers"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
