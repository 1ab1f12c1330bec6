"""Sums out of other ranks' memory: of one rank, where the others have done their part before, and of all at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.gpu.peer_sum import MOST_RANKS, PROGRAMS, SIGNAL_BYTES, PeerRegions, peer_sum, region_bytes

AssertClose = Callable[[Tensor, Tensor], None]
HALF_BYTES = 1 << 19
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)


@pytest.fixture
def launch_checker() -> None:
    """Not here: the checker knows no order but that of barriers, and these programs wait for each other's atomics."""


@dataclass
class Machine:
    """Every rank's region, on one device."""

    memory: list[Tensor]

    @classmethod
    def of(cls, num_ranks: int, device: torch.device) -> Machine:
        num_bytes = region_bytes(HALF_BYTES)
        return cls([torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(num_ranks)])

    def regions(self, rank: int) -> PeerRegions:
        return PeerRegions.over(rank, self.memory, HALF_BYTES)

    def signals(self, rank: int) -> Tensor:  # [PROGRAMS, MOST_RANKS]
        return self.memory[rank][:SIGNAL_BYTES].view(torch.int64).view(PROGRAMS, MOST_RANKS)

    def half(self, rank: int, round: int, like: Tensor) -> Tensor:
        first = SIGNAL_BYTES + round % 2 * HALF_BYTES
        return self.memory[rank][first : first + HALF_BYTES].view(like.dtype)[: len(like)]

    def contribute(self, rank: int, round: int, x: Tensor) -> None:
        """What the rank does before it waits."""
        self.half(rank, round, x).copy_(x)
        for other in range(len(self.memory)):
            self.signals(other)[:, rank] = round


def parts(num_ranks: int, size: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [(torch.randn(size) * 3**rank).to(device, dtype) for rank in range(num_ranks)]


def meant(summands: list[Tensor]) -> Tensor:
    total = torch.zeros(len(summands[0]), device=summands[0].device)
    for each in summands:
        total += each.float()
    return total.to(summands[0].dtype)


@DTYPES
@pytest.mark.parametrize("num_ranks", (2, 3, 8), ids="{} ranks".format)
@pytest.mark.parametrize("size", (1, 2047, 2048 * (PROGRAMS + 1) + 5))
def test_every_rank_adds_all_parts_in_their_order(
    size: int, num_ranks: int, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    summands, rank = parts(num_ranks, size, dtype, device), num_ranks - 1
    machine = Machine.of(num_ranks, device)
    for other in range(rank):
        machine.contribute(other, 1, summands[other])
    x, regions = summands[rank].clone(), machine.regions(rank)
    peer_sum(x, regions, max_polls=0)
    if dtype == torch.bfloat16 and device.type == "cpu":  # the interpreter rounds bf16 towards zero
        assert_close(x, meant(summands))
    else:
        assert torch.equal(x, meant(summands))
    assert torch.equal(machine.half(rank, 1, x), summands[rank])
    assert regions.state.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("size", "programs"), ((2048, 1), (2049, 2), (2048 * (PROGRAMS + 2), PROGRAMS)))
def test_each_program_tells_every_rank_of_the_round(size: int, programs: int, device: torch.device) -> None:
    machine = Machine.of(3, device)
    for other in (0, 2):
        machine.contribute(other, 1, torch.zeros(size, device=device))
    peer_sum(torch.zeros(size, device=device), machine.regions(1), max_polls=0)
    for rank in range(3):
        assert machine.signals(rank)[:, 1].tolist() == [1] * programs + [0] * (PROGRAMS - programs)


def test_rounds_take_turns_with_the_halves(device: torch.device) -> None:
    machine, summands = Machine.of(2, device), parts(2, 5000, torch.float32, device)
    regions = machine.regions(0)
    for round in (1, 2, 3):
        machine.contribute(1, round, summands[1] * round)
        before = machine.half(0, round + 1, summands[0]).clone()
        x = summands[0] * round
        peer_sum(x, regions, max_polls=0)
        assert torch.equal(x, meant([each * round for each in summands]))
        assert torch.equal(machine.half(0, round + 1, x), before), "others may still read it"
    assert regions.state.tolist() == [3, 0, 0]


def test_a_rank_that_stays_silent_is_told_of(device: torch.device) -> None:
    machine, x = Machine.of(3, device), torch.ones(100, device=device)
    machine.contribute(1, 1, x)
    regions = machine.regions(0)
    peer_sum(x, regions, max_polls=4, fails_loudly=False)
    assert regions.state.tolist() == [1, 0, 1]


def test_once_interrupted_nobody_is_waited_for(device: torch.device) -> None:
    """A silent rank would end the use of the device, which the interpreter cannot do: it would raise."""
    regions, x = Machine.of(2, device).regions(0), torch.ones(100, device=device)
    regions.state[2] = 1
    peer_sum(x, regions, max_polls=1 << 30, fails_loudly=True)
    assert regions.state.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("x", "why"),
    (
        (torch.zeros(HALF_BYTES // 4 + 1), "fit half a region"),
        (torch.zeros(0), "fit half a region"),
        (torch.zeros(4, 4).t()[1:], "one piece"),
        (torch.zeros(4, dtype=torch.int32), "is not summed"),
    ),
    ids=("too long", "nothing", "not in one piece", "integers"),
)
def test_what_cannot_be_summed_is_refused(x: Tensor, why: str, device: torch.device) -> None:
    with pytest.raises(AssertionError, match=why):
        peer_sum(x.to(device), Machine.of(2, device).regions(0), max_polls=0)


def test_processes_that_sum_at_the_same_time_agree(device: torch.device, tmp_path: Path) -> None:
    """Sizes and so numbers of programs change from sum to sum, and no rank waits for another one but in the kernel."""
    if device.type != "cpu":
        pytest.skip("ranks of one GPU would wait for one another's place on it")
    script, num_ranks = Path(__file__).with_name("peer_sum_rank.py"), 2
    (tmp_path / "memory").write_bytes(bytes(num_ranks * region_bytes(HALF_BYTES)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(num_ranks), str(tmp_path / "memory")],
            env=environment,
        )
        for rank in range(num_ranks)
    ]
    assert [rank.wait(120) for rank in ranks] == [0] * num_ranks
