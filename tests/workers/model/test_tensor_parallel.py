"""Two ranks over gloo on loopback against one worker, and what cannot be divided."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from protocol.codec import encode
from protocol.errors import UnsupportedModel
from protocol.sampling import SamplingParams
from protocol.tokens import unpack_tokens
from workers.model.cpu_runner import CpuRunner
from workers.model.families import llama
from workers.model.hf_config import read_config
from workers.model.runner_config import RunnerConfig
from workers.model.weights.weight_layout import check_divides
from workers.rank_link import free_port
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup, connect_group

T = TypeVar("T")
ROOT = Path(__file__).parents[3]


def recorded_run(driver: Any) -> tuple[list[StepPlan], list[list[SampledTokens]]]:
    """A greedy row in chunks, one with logprobs beside it, alone on one worker."""
    rows = [
        driver.add([1, 17, 42, 5, 77, 31]),
        driver.add([9, 8, 7], SamplingParams(temperature=0.0, logprobs=3)),
    ]
    driver.generate(rows, 36, chunk=4)
    return driver.plans, [driver.sequences[row].drawn for row in rows]


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Any]:
    """Starts rank 1 for a checkpoint and its plans, and sees to it that it ended well."""
    started: list[subprocess.Popen[bytes]] = []

    def start(directory: Path, port: int, plans: list[StepPlan]) -> None:
        file = tmp_path / "plans"
        file.write_bytes(pickle.dumps([encode(plan) for plan in plans]))
        command = [
            sys.executable,
            str(Path(__file__).with_name("follower.py")),
            str(directory),
            str(port),
            str(file),
        ]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}))

    yield start
    for process in started:
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("variant", ("untied_llama3", "biased_linear"))
def test_two_workers_draw_the_tokens_of_one(
    variant: str, open_runner: Any, make_checkpoint: Any, drive: Any, follow: Any
) -> None:
    plans, expected = recorded_run(drive(open_runner(variant)))
    port = free_port("127.0.0.1")
    follow(make_checkpoint(variant), port, plans)
    config = RunnerConfig(make_checkpoint(variant), "float32", block_size=4, max_num_seqs=8)
    runner = CpuRunner(config, connect_group(0, 2, "127.0.0.1", port, 60.0))
    drawn = [runner.launch(plan) for plan in plans]
    runner.close()
    tokens = [token for each in drawn for token in each.token_ids]
    assert tokens == [token for step in replay(plans, expected) for token in step]


def replay(plans: list[StepPlan], drawn: list[list[SampledTokens]]) -> Iterator[list[int]]:
    """What each plan drew, from what each row drew."""
    rows = [iter(row) for row in drawn]
    for plan in plans:
        drawing = [*unpack_tokens(plan.decode_rows), *(chunk.row for chunk in plan.chunks if chunk.sample)]
        yield [next(rows[row]).token_ids[0] for row in drawing]


def test_heads_that_do_not_divide_are_refused_with_the_sizes_that_would(make_checkpoint: Any) -> None:
    spec = llama.spec(read_config(make_checkpoint()))
    with pytest.raises(
        UnsupportedModel, match=r"2 KV heads.*among 3 workers: tensor_parallel_size can be 1, 2"
    ):
        check_divides(spec, 3)


def test_a_group_of_one_exchanges_nothing() -> None:
    group = TensorParallelGroup()
    assert (group.rank, group.size, group.minimum(7)) == (0, 1, 7)


@pytest.fixture
def pair() -> Iterator[tuple[TensorParallelGroup, TensorParallelGroup]]:
    """Both ranks of a group in this process: nothing of a group is global."""
    port = free_port("127.0.0.1")
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(connect_group, rank, 2, "127.0.0.1", port, 30.0) for rank in range(2)]
        groups = ends[0].result(), ends[1].result()
    yield groups
    for group in groups:
        group.close()


def both(first: Callable[[], T], second: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(2) as pool:
        return [call.result() for call in (pool.submit(first), pool.submit(second))]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_ranks_add_up_and_rank_0_gathers(
    dtype: torch.dtype, pair: tuple[TensorParallelGroup, TensorParallelGroup]
) -> None:
    ones = [torch.full((2, 3), group.rank + 1.0, dtype=dtype) for group in pair]
    gathered = both(lambda: pair[0].gather(ones[0]), lambda: pair[1].gather(ones[1]))
    assert gathered[0] is not None
    assert gathered[0].tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]] * 2
    assert gathered[1] is None
    sums = both(lambda: pair[0].all_reduce(ones[0]), lambda: pair[1].all_reduce(ones[1]))
    assert all(each.eq(3.0).all() for each in sums)
    assert both(lambda: pair[0].minimum(9), lambda: pair[1].minimum(4)) == [4, 4]


def test_a_rank_that_goes_away_is_noticed_at_once(
    pair: tuple[TensorParallelGroup, TensorParallelGroup],
) -> None:
    pair[1].close()
    with pytest.raises(RuntimeError):
        pair[0].all_reduce(torch.ones(3))
