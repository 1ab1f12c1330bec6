"""Two ranks of the runner for GPUs, which are two threads of this process, draw what one draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from protocol.sampling import SamplingParams
from workers.rank_link import free_port
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup, connect_group

PROMPTS = ([1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11], [1, 9, 9, 30], [3])
GREEDY = SamplingParams(temperature=0.0)
SAMPLINGS = {
    "most likely": (GREEDY, GREEDY, GREEDY),
    "drawn": (GREEDY, SamplingParams(top_p=0.8), SamplingParams(temperature=1.4)),
    "edited": (
        SamplingParams(temperature=0.0, repetition_penalty=1.3, prompt_logprobs=1),
        SamplingParams(top_k=9, bad_word_ids=((5, 6), (7,)), min_tokens=3, stop_token_ids=(4,)),
        SamplingParams(temperature=0.0, logprobs=2),
    ),
}


class Pair:
    """Both ranks' runners as one, for the driver."""

    def __init__(self, runners: list[Any], threads: ThreadPoolExecutor) -> None:
        self.runners, self._threads = runners, threads
        self.facts = runners[0].facts

    def launch(self, plan: StepPlan) -> Any:
        first, second = self._threads.map(lambda runner: runner.launch(plan), self.runners)
        assert second.wait() == SampledTokens(), "only rank 0 tells what was drawn"
        return first.wait()


@pytest.fixture
def open_pair(open_cuda_runner: Any) -> Iterator[Callable[..., Pair]]:
    with ThreadPoolExecutor(2) as threads:
        port = free_port("127.0.0.1")

        def open_one(variant: str) -> Pair:
            def open_rank(rank: int) -> Any:
                group: TensorParallelGroup = connect_group(rank, 2, "127.0.0.1", port, 60.0)
                return open_cuda_runner(variant, group=group)

            return Pair(list(threads.map(open_rank, range(2))), threads)

        yield open_one


@pytest.mark.parametrize("wishes", SAMPLINGS)
@pytest.mark.parametrize("variant", ("untied_llama3", "gemma2"))
def test_two_ranks_draw_what_one_draws(
    variant: str, wishes: str, open_cuda_runner: Any, open_pair: Any, drive: Any, drive_cuda: Any
) -> None:
    drivers = drive_cuda(open_cuda_runner(variant)), drive(open_pair(variant))
    for driver in drivers:
        rows = [driver.add(*each, seed=7) for each in zip(PROMPTS, SAMPLINGS[wishes], strict=True)]
        driver.generate(rows, 10, chunk=4)
    first, second = ([each.generated for each in driver.sequences.values()] for driver in drivers)
    assert first == second
    ranks = [
        [each.rank for drawn in driver.sequences[2].drawn for each in drawn.logprobs.values()]
        for driver in drivers
    ]
    assert ranks[0] == ranks[1] == [1] * (10 if wishes == "edited" else 0)


def test_both_ranks_keep_the_tokens_to_feed(open_pair: Any, drive: Any) -> None:
    pair = open_pair("untied_llama3")
    driver = drive(pair)
    driver.generate([driver.add(PROMPTS[0])], 5)
    kept = [runner._executor._head.newest for runner in pair.runners]
    assert torch.equal(*kept) and kept[0][0] == driver.sequences[0].generated[-1]
