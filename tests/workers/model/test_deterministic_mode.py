"""Deterministic mode: equal requests get equal bits, whatever else the engine does.

Compared are the tokens and the twenty best raw log-probabilities of each: one bit of a row's logits changes some.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.block_hash import SECRET_BYTES
from protocol.messages import Submit, TokenLogprob
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from workers.engine import Engine
from workers.engine_builder import build_engine
from workers.engine_config import EngineConfig
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.rank_link import free_port
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import connect_group

MODEL = "untied_llama3"
SHARED = [(13 * index) % 89 + 3 for index in range(140)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logprobs=20, seed=0)
RANDOM = SamplingParams(
    temperature=0.9, top_p=0.95, top_k=40, max_tokens=20, ignore_eos=True, logprobs=20, seed=5
)
# Lengths on both sides of blocks, of tiles of rows, and of the attention's 128 keys; most begin alike.
REQUESTS = {
    "short": ([7, 9, 11], GREEDY),
    "drawn": ([5, *SHARED[:16]], RANDOM),
    "shared": ([*SHARED[:43], 8], GREEDY),
    "shared, drawn": ([*SHARED[:60], 9, 4], RANDOM),
    "grows over a tile of keys": (SHARED[:121], RANDOM),
    "long": ([*SHARED, 6, 7], GREEDY),
}
MODES = (("float32", 1), ("bfloat16", 1), ("float32", 2))

Requests = Mapping[str, tuple[list[int], SamplingParams]]
Answers = dict[str, list[tuple[int, TokenLogprob]]]
OpenEngine = Callable[..., Engine]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def open_engine(open_runner: Any) -> OpenEngine:
    """Over a small random model, with blocks of four tokens."""

    def open_one(
        model: str = MODEL, dtype: str = "float32", pool_blocks: int | None = None, **config: Any
    ) -> Engine:
        options = EngineConfig(**{"deterministic": True, "max_num_seqs": 6, "dtype": dtype, **config})
        runner = open_runner(model, dtype=dtype, deterministic=options.deterministic, max_num_seqs=6)
        return build_engine(options, runner, bytes(SECRET_BYTES))

    return open_one


def answers(engine: Engine, requests: Requests, arrival: random.Random | None = None) -> Answers:
    """All at once, or at random steps and in random order."""
    waiting = list(requests)
    if arrival is not None:
        arrival.shuffle(waiting)
    rows, found = TokenRows(), Answers({name: [] for name in requests})
    while waiting or engine.has_work:
        for _ in range(len(waiting) if arrival is None else arrival.choice((0, 0, 0, 1, 2))):
            if waiting:
                submit(engine, waiting[0], *requests[waiting.pop(0)])
        report = engine.step()
        for output in rows.expand(report.outputs, report.rows, report.tokens):
            assert output.logprobs is not None
            found[output.request_id] += zip(output.token_ids, output.logprobs, strict=True)
    return found


def submit(
    engine: Engine, name: str, prompt: list[int], sampling: SamplingParams, generated: tuple[bytes, ...] = ()
) -> None:
    engine.submit(Submit(name, pack_tokens(prompt), sampling, generated=generated))


def alone(open_engine: OpenEngine, **config: Any) -> Answers:
    """Every request by itself, its prompt in one piece, nothing cached."""
    engine = open_engine(enable_prefix_caching=False, **config)
    found = Answers()
    for name, request in REQUESTS.items():
        found |= answers(engine, {name: request})
    return found


@pytest.mark.parametrize(("dtype", "num_threads"), MODES)
def test_batches_chunks_and_cache_hits_change_no_bit(
    dtype: str, num_threads: int, open_engine: OpenEngine, threads: Callable[[int], None]
) -> None:
    threads(num_threads)
    expected = alone(open_engine, dtype=dtype)
    for budget in (7, 16, 64, 2048):
        engine = open_engine(dtype=dtype, max_num_batched_tokens=budget)
        for attempt in range(3):
            arrival = None if attempt == 0 else random.Random(budget + attempt)
            assert answers(engine, REQUESTS, arrival) == expected, f"budget {budget}, attempt {attempt}"
        assert engine.load().cache.hit > 0


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_without_the_mode_some_bits_change(dtype: str, open_engine: OpenEngine) -> None:
    """What the other tests here would see if the mode did nothing."""
    expected = alone(open_engine, dtype=dtype, deterministic=False)
    engine = open_engine(dtype=dtype, deterministic=False, max_num_batched_tokens=16)
    assert answers(engine, REQUESTS) != expected
