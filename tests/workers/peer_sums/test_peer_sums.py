"""Which sums ranks make out of each other's memory, and that all of them or none do, whatever one of them lacks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from workers.peer_sums import open_peer_sums
from workers.rank_link import free_port


def draw(team: Any, *shape: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [(torch.randn(shape) * 5**rank).to(dtype) for rank in range(len(team.groups))]


def meant(summands: list[Tensor]) -> Tensor:
    return torch.stack([each.float() for each in summands]).sum(0).to(summands[0].dtype)


def new_sums(team: Any) -> list[int]:
    """Bytes of each sum that the first rank makes from here on."""
    made: list[int] = team.peers[0].summed
    made.clear()
    return made


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("size", (1, 7, 1000, 12345))
def test_all_ranks_get_the_same_bits(size: int, dtype: torch.dtype, trio: Any) -> None:
    made, summands = new_sums(trio), draw(trio, size, dtype=dtype)
    expected = meant(summands)
    assert all(torch.equal(found, expected) for found in trio.all_reduce(summands))
    assert made == [size * dtype.itemsize]


def test_each_half_of_the_memory_is_tried_whole(trio: Any) -> None:
    assert trio.peers[0].summed == [4096, 4096, 1 << 20, 1 << 20, 4096]  # the first alone


def test_a_sum_is_made_in_place(trio: Any) -> None:
    summands = draw(trio, 3, 5)
    assert all(found is given for found, given in zip(trio.all_reduce(summands), summands, strict=True))


def test_what_does_not_lie_in_one_piece_is_summed_where_it_lies(trio: Any) -> None:
    made, summands = new_sums(trio), [each.t()[1:] for each in draw(trio, 6, 4)]
    expected = meant(summands)
    trio.all_reduce(summands)
    assert all(torch.equal(found, expected) for found in summands)
    assert made == [36]


def test_sums_follow_each_other_at_any_pace(trio: Any) -> None:
    rounds = [draw(trio, size) for size in torch.randint(1, 3000, (30,)).tolist()]
    expected = [meant(summands) for summands in rounds]
    trio.all(lambda rank: [trio.groups[rank].all_reduce(summands[rank]) for summands in rounds])
    assert all(
        torch.equal(each[rank], sum_)
        for each, sum_ in zip(rounds, expected, strict=True)
        for rank in range(3)
    )


@pytest.mark.parametrize(("num_elements", "quick"), ((1 << 19, True), ((1 << 19) + 1, False)))
def test_three_ranks_sum_up_to_one_mebibyte_this_way(num_elements: int, quick: bool, trio: Any) -> None:
    made = new_sums(trio)
    found = trio.all_reduce(
        [torch.full((num_elements,), rank + 1.0, dtype=torch.bfloat16) for rank in range(3)]
    )
    assert all(each.eq(6.0).all() for each in found)
    assert made == ([2 * num_elements] if quick else [])


def test_in_rank_order_long_sums_are_made_piece_by_piece(orderly_trio: Any) -> None:
    """No size goes another way, so a number's bits do not depend on how many others are summed with it."""
    made, summands = new_sums(orderly_trio), draw(orderly_trio, 3 << 20, dtype=torch.float32)
    expected = meant(summands)
    assert all(torch.equal(found, expected) for found in orderly_trio.all_reduce(summands))
    assert made == [8 << 20, 4 << 20]


@pytest.mark.parametrize(
    "x", (torch.ones(5, dtype=torch.int64), torch.ones(5, dtype=torch.float64), torch.ones(0)), ids=str
)
def test_what_the_kernel_does_not_sum_goes_the_other_way(x: Tensor, trio: Any) -> None:
    made = new_sums(trio)
    assert all(torch.equal(found, 3 * x) for found in trio.all_reduce([x.clone() for _ in range(3)]))
    assert made == []


@pytest.mark.parametrize(
    "lacking", ("name", "links", "memory", "way to others", "kernel", "signals", "numbers")
)
def test_what_one_rank_lacks_no_rank_uses(
    lacking: str, open_team: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), open_team(3, fails_at=lacking) as team:
        assert team.sums == [None] * 3
        assert all(found.eq(3.0).all() for found in team.all_reduce([torch.ones(4) for _ in range(3)]))
    reasons = [record.getMessage() for record in caplog.records if "NCCL alone" in record.getMessage()]
    assert len(reasons) == 3, "each rank says why, once"
    said = {"signals": "signals do not arrive", "numbers": "are wrong"}
    assert any(said.get(lacking, f"rank 2 has no {lacking}") in reason for reason in reasons)


@dataclass
class ManyRanks:
    """As seen by one of them, who fails before it needs the others."""

    size = 9
    rank = 0

    def minimum(self, value: int) -> int:
        return value

    def gather_everywhere(self, x: Tensor) -> Tensor:
        raise AssertionError("nothing has been agreed upon")


def test_more_ranks_than_have_signals_go_the_other_way(peers: Any) -> None:
    assert open_peer_sums(ManyRanks(), HashStore(), peers, False, 1.0) is None


def test_closing_ends_the_wait_for_a_rank_that_never_comes(trio: Any) -> None:
    waiting = [trio.threads.submit(trio.groups[rank].all_reduce, torch.ones(4)) for rank in (0, 1)]
    for group in trio.groups:
        group.close()
    assert [len(each.result(10)) for each in waiting] == [4, 4]


def test_a_gpu_in_error_does_not_keep_a_group_from_closing(
    trio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    for name in ("interrupt", "wait"):
        monkeypatch.setattr(trio.peers[0], name, fail)
    trio.groups[0].close()
    assert trio.groups[0]._process_group is None


@pytest.mark.multi_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("in_rank_order", (False, True), ids=("as is quickest", "in rank order"))
def test_gpus_sum_out_of_each_others_memory(in_rank_order: bool) -> None:
    num_ranks, port = min(torch.cuda.device_count(), 8), free_port("127.0.0.1")
    script, root = Path(__file__).with_name("peer_sums_rank.py"), Path(__file__).parents[3]
    ranks: list[subprocess.Popen[Any]] = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(num_ranks), str(port), str(int(in_rank_order))],
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for rank in range(num_ranks)
    ]
    assert [rank.wait(300) for rank in ranks] == [0] * num_ranks
