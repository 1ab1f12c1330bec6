"""An engine over the runner for GPUs, with two steps in flight, says what an engine over the CPU's runner says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.block_hash import SECRET_BYTES
from protocol.messages import Submit
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from workers.engine import Engine
from workers.engine_builder import build_engine
from workers.engine_config import EngineConfig

SHARED = [(13 * index) % 89 + 3 for index in range(40)]
REQUESTS: dict[str, tuple[list[int], SamplingParams]] = {
    "greedy": ([*SHARED, 7], SamplingParams(temperature=0.0, max_tokens=25, seed=0)),
    "drawn": ([*SHARED[:30], 9], SamplingParams(top_p=0.8, max_tokens=18, seed=3)),
    "several": ([5, 6, 7], SamplingParams(n=3, temperature=1.2, max_tokens=9, seed=4)),
    "edited": (SHARED[:9], SamplingParams(presence_penalty=1.0, min_tokens=4, max_tokens=12, seed=5)),
    "one token": ([8, 8], SamplingParams(temperature=0.0, max_tokens=1, seed=0)),
}
Answers = dict[tuple[str, int], list[int]]


def answers_of(engine: Engine, requests: Any = REQUESTS, together: int = 2) -> Answers:
    """Some at once, so that rows end and others start while steps are in flight."""
    rows, found, left = TokenRows(), Answers(), list(requests.items())
    running: set[str] = set()
    while left or engine.has_work:
        while left and len(running) < together:
            name, (prompt, sampling) = left.pop(0)
            engine.submit(Submit(name, pack_tokens(prompt), sampling))
            running.add(name)
        report = engine.step()
        for each in rows.expand(report.outputs, report.rows, report.tokens):
            found.setdefault((each.request_id, each.index), []).extend(each.token_ids)
            if each.finish_reason is not None:
                running.discard(each.request_id)
    return found


@pytest.fixture
def open_engines(open_runner: Any, open_cuda_runner: Any) -> Callable[..., tuple[Engine, Engine]]:
    def open_both(
        pool_bytes: int = 1 << 20, directory: Path | str = "untied_llama3"
    ) -> tuple[Engine, Engine]:
        config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=32)
        shared = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "kv_cache_memory_bytes": pool_bytes}
        runners = open_runner(directory, **shared), open_cuda_runner(directory, **shared)
        first, second = (build_engine(config, runner, bytes(SECRET_BYTES)) for runner in runners)
        assert second.facts.max_in_flight == 2
        return first, second

    return open_both


@pytest.mark.parametrize("together", (1, 2, 5))
def test_two_steps_in_flight_draw_what_a_cpu_draws(together: int, open_engines: Any) -> None:
    cpu, gpu = open_engines()
    assert answers_of(gpu, together=together) == answers_of(cpu, together=together)


def test_a_preempted_row_goes_on_as_on_a_cpu(open_engines: Any) -> None:
    requests = {
        str(index): ([*SHARED[index:], index], SamplingParams(temperature=0.9, max_tokens=30, seed=index))
        for index in range(5)
    }
    cpu, gpu = open_engines(pool_bytes=30 * 2 * 2 * 4 * 2 * 16 * 4)
    assert answers_of(gpu, requests, together=5) == answers_of(cpu, requests, together=5)
    assert gpu.load().num_preemptions > 0


def test_a_second_turn_hits_what_the_first_computed(open_engines: Any) -> None:
    cpu, gpu = open_engines()
    first = answers_of(gpu)
    assert answers_of(gpu) == first == answers_of(cpu)
