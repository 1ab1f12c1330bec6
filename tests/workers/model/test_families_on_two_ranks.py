"""Every family in every variant divided between two ranks, which are two threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.rank_link import free_port
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import connect_group

PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11]
NUM_TOKENS = 64
TOLERANCE = 2e-5  # of the largest logit


class Pair:
    """Both ranks' runners as one."""

    def __init__(self, directory: Path) -> None:
        self._threads = ThreadPoolExecutor(2)
        port = free_port("127.0.0.1")

        def open_one(rank: int) -> CpuRunner:
            config = RunnerConfig(directory, "float32", block_size=4, max_num_seqs=8)
            return CpuRunner(config, connect_group(rank, 2, "127.0.0.1", port, 60.0))

        self.runners = list(self._threads.map(open_one, range(2)))
        self.facts = self.runners[0].facts

    def launch(self, plan: StepPlan) -> Any:
        first, second = self._threads.map(lambda runner: runner.launch(plan), self.runners)
        assert second.wait() == SampledTokens(), "only rank 0 draws"
        return first

    def close(self) -> None:
        list(self._threads.map(CpuRunner.close, self.runners))
        self._threads.shutdown()


@pytest.fixture
def open_pair() -> Iterator[Callable[[Path], Pair]]:
    opened: list[Pair] = []

    def open_one(directory: Path) -> Pair:
        opened.append(Pair(directory))
        return opened[-1]

    yield open_one
    for pair in opened:
        pair.close()


def test_two_ranks_draw_the_tokens_of_one(
    family_variant: str,
    open_runner: Any,
    open_pair: Any,
    make_checkpoint: Any,
    record_logits: Any,
    drive: Any,
) -> None:
    directory = make_checkpoint(family_variant)
    alone, pair = open_runner(directory), open_pair(directory)
    logits = record_logits(alone), record_logits(pair.runners[0])
    found = []
    for runner in (alone, pair):
        driver = drive(runner)
        row = driver.add(PROMPT)
        driver.generate([row], NUM_TOKENS, chunk=7)
        found.append(driver.sequences[row].generated)
    assert found[0] == found[1]
    expected, divided = map(torch.cat, logits)
    assert (divided - expected).abs().max() < TOLERANCE * expected.abs().max()
