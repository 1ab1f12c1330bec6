"""Deterministic mode: equal requests get equal bits, whatever else the engine does.

Compared are the tokens and the twenty best raw log-probabilities of each: one bit of a row's logits changes some.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from workers.runner import Runner
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import connect_group

MODEL = "untied_llama3"
MAX_NUM_SEQS = 6
SHARED = [(13 * index) % 89 + 3 for index in range(140)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=20, seed=0)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, top_k=40, repetition_penalty=1.1, seed=5)
# Lengths on both sides of blocks, of tiles of rows, and of the attention's 64 keys; most begin alike.
REQUESTS = {
    "short": ([7, 9, 11], GREEDY),
    "drawn": ([5, *SHARED[:16]], DRAWN),
    "shared": ([*SHARED[:43], 8], GREEDY),
    "shared, drawn": ([*SHARED[:60], 9, 4], DRAWN),
    "grows over a tile of keys": (SHARED[:121], DRAWN),
    "long": ([*SHARED, 6, 7], GREEDY),
}

Request = tuple[list[int], SamplingParams]
Answers = dict[str, list[tuple[int, TokenLogprob]]]
OpenEngine = Callable[..., Engine]


def engine_over(runner: Runner, **config: Any) -> Engine:
    return build_engine(EngineConfig(**{"max_num_seqs": MAX_NUM_SEQS, **config}), runner, bytes(SECRET_BYTES))


@pytest.fixture
def open_engine(open_runner: Any) -> OpenEngine:
    """Over a small random model, with blocks of four tokens."""

    def open_one(
        model: str | Path = MODEL,
        dtype: str = "float32",
        deterministic: bool = True,
        kv_cache_dtype: str = "auto",
        pool_bytes: int | None = None,
        max_model_len: int | None = None,
        **config: Any,
    ) -> Engine:
        runner = open_runner(
            model,
            dtype=dtype,
            deterministic=deterministic,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_memory_bytes=pool_bytes,
            max_model_len=max_model_len,
            max_num_seqs=MAX_NUM_SEQS,
        )
        return engine_over(runner, **config)

    return open_one


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


def submit(engine: Engine, name: str, request: Request, generated: tuple[bytes, ...] = ()) -> None:
    engine.submit(Submit(name, pack_tokens(request[0]), request[1], generated=generated))


def step(engine: Engine, rows: TokenRows, found: Answers) -> None:
    report = engine.step()
    for output in rows.expand(report.outputs, report.rows, report.tokens):
        entries = output.logprobs or [TokenLogprob(0.0, 0)] * len(output.token_ids)
        found.setdefault(output.request_id, []).extend(zip(output.token_ids, entries, strict=True))


def answers(
    engine: Engine, requests: Mapping[str, Request] = REQUESTS, arrival: random.Random | None = None
) -> Answers:
    """To requests that all come at once, or in random order at random steps."""
    waiting, rows, found = list(requests), TokenRows(), Answers()
    if arrival is not None:
        arrival.shuffle(waiting)
    while waiting or engine.has_work:
        for name in waiting[: len(waiting) if arrival is None else arrival.choice((0, 0, 1, 2))]:
            submit(engine, name, requests[waiting.pop(waiting.index(name))])
        step(engine, rows, found)
    return found


def answers_alone(engine: Engine, requests: Mapping[str, Request] = REQUESTS) -> Answers:
    """To one request after the other."""
    found = Answers()
    for name, request in requests.items():
        found |= answers(engine, {name: request})
    return found


@pytest.mark.parametrize(("dtype", "threads"), (("float32", 1), ("bfloat16", 1), ("float32", 2)))
def test_batches_chunks_and_cache_hits_change_no_bit(
    dtype: str, threads: int, open_engine: OpenEngine, set_threads: Callable[[int], None]
) -> None:
    set_threads(threads)
    expected = answers_alone(open_engine(dtype=dtype, enable_prefix_caching=False))
    for budget in (7, 16, 64, 2048):
        engine = open_engine(dtype=dtype, max_num_batched_tokens=budget)
        assert answers(engine) == expected, f"cold, in chunks of {budget}"
        assert answers(engine, arrival=random.Random(budget)) == expected, f"warm, in chunks of {budget}"
        assert engine.load().cache.hit > 100


def test_what_was_rounded_to_be_stored_is_read_alike_by_hits_and_by_who_computed_it(
    open_engine: OpenEngine,
) -> None:
    expected = answers_alone(open_engine(kv_cache_dtype="fp8", enable_prefix_caching=False))
    engine = open_engine(kv_cache_dtype="fp8", max_num_batched_tokens=16)
    assert answers(engine) == expected
    assert answers(engine, arrival=random.Random(1)) == expected
    assert engine.load().cache.hit > 100


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_without_the_mode_some_bits_change(dtype: str, open_engine: OpenEngine) -> None:
    """What the other tests here would see if the mode did nothing."""
    config = {"dtype": dtype, "deterministic": False}
    expected = answers_alone(open_engine(**config, enable_prefix_caching=False))
    assert answers(open_engine(**config, max_num_batched_tokens=16)) != expected


def test_no_family_of_models_is_left_out(family_variant: str, open_engine: OpenEngine) -> None:
    requests = {name: REQUESTS[name] for name in ("shared, drawn", "drawn", "long")}
    cold = open_engine(family_variant, max_model_len=200, enable_prefix_caching=False)
    expected = answers_alone(cold, requests)
    engine = open_engine(family_variant, max_model_len=200, max_num_batched_tokens=23)
    assert answers(engine, requests) == expected
    assert answers(engine, requests, random.Random(1)) == expected


def test_the_mode_computes_what_the_model_means(family_variant: str, open_engine: OpenEngine) -> None:
    request = {"long": REQUESTS["long"]}
    config = {"model": family_variant, "max_model_len": 200}
    found, expected = (
        answers(open_engine(**config, deterministic=deterministic), request)["long"]
        for deterministic in (True, False)
    )
    assert [token for token, _ in found] == [token for token, _ in expected]
    for (_, mine), (_, other) in zip(found, expected, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_preemption_changes_no_bit(dtype: str, open_engine: OpenEngine) -> None:
    expected = answers_alone(open_engine(dtype=dtype))
    block_bytes = 2 * 3 * 4 * 2 * 8 * (4 if dtype == "float32" else 2)
    engine = open_engine(dtype=dtype, pool_bytes=60 * block_bytes, max_model_len=200)
    assert answers(engine) == expected
    assert engine.load().num_preemptions > 0


@pytest.mark.parametrize("name", ("shared, drawn", "long"))
def test_a_request_that_moves_goes_on_as_if_it_had_stayed(name: str, open_engine: OpenEngine) -> None:
    expected = answers_alone(open_engine(), {name: REQUESTS[name]})[name]
    first, rows, begun = open_engine(max_num_batched_tokens=16), TokenRows(), Answers()
    for each in REQUESTS:
        submit(first, each, REQUESTS[each])
    while len(begun.get(name, ())) < 7:
        step(first, rows, begun)
    generated = [token for token, _ in begun[name]]
    second, rest = open_engine(max_num_batched_tokens=64), Answers()
    answers(second, {"other": REQUESTS["grows over a tile of keys"]})
    submit(second, name, REQUESTS[name], (pack_tokens(generated),))
    rows = TokenRows()
    while second.has_work:
        step(second, rows, rest)
    assert begun[name] + rest[name] == expected


def test_logprobs_asked_for_beside_a_request_change_none_of_its_own(open_engine: OpenEngine) -> None:
    """In bf16 several tokens often have equal logits: which of them are named is decided by the row alone."""
    requests = {
        name: (prompt, replace(sampling, logprobs=width))
        for width, (name, (prompt, sampling)) in enumerate(REQUESTS.items())
    }
    expected = answers_alone(open_engine(dtype="bfloat16"), requests)
    assert answers(open_engine(dtype="bfloat16"), requests) == expected


def test_prompts_are_scored_alike_in_any_chunks(open_engine: OpenEngine) -> None:
    prompt, sampling = REQUESTS["long"]
    scored = []
    for budget in (7, 64, 2048):
        engine = open_engine(dtype="bfloat16", max_num_batched_tokens=budget)
        submit(engine, "long", (prompt, replace(sampling, prompt_logprobs=5)))
        outputs = [output for _ in range(40) for output in engine.step().outputs]
        scored.append([each.prompt_logprobs for each in outputs if each.prompt_logprobs is not None])
    assert len(scored[0][0]) == len(prompt) - 1
    assert scored[0] == scored[1] == scored[2]


def test_steps_that_overlap_change_no_bit(open_engine: OpenEngine) -> None:
    expected = answers_alone(open_engine())
    engine = open_engine(async_scheduling=True, max_num_batched_tokens=16)
    assert answers(engine) == expected
    engine.close()


class Pair:
    """Both ranks of a replica as one runner: two threads of this process."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self._threads = ThreadPoolExecutor(2)
        port = free_port("127.0.0.1")

        def open_one(rank: int) -> CpuRunner:
            config = RunnerConfig(directory, dtype, 4, max_num_seqs=MAX_NUM_SEQS, deterministic=True)
            group = connect_group(rank, 2, "127.0.0.1", port, 60.0, in_rank_order=True)
            return CpuRunner(config, group)

        self._runners = list(self._threads.map(open_one, range(2)))
        self.facts = self._runners[0].facts

    def launch(self, plan: StepPlan) -> SampledTokens:
        first, _ = self._threads.map(lambda runner: runner.launch(plan), self._runners)
        return first

    def close(self) -> None:
        list(self._threads.map(CpuRunner.close, self._runners))
        self._threads.shutdown()


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_two_ranks_change_no_bit_either(dtype: str, make_checkpoint: Any) -> None:
    pair = Pair(make_checkpoint(MODEL), dtype)
    try:
        expected = answers_alone(engine_over(pair, enable_prefix_caching=False))
        engine = engine_over(pair, max_num_batched_tokens=16)
        assert answers(engine) == expected
        assert answers(engine, arrival=random.Random(2)) == expected
    finally:
        pair.close()


def test_three_ranks_add_up_in_their_order_everywhere() -> None:
    """The order that a ring takes depends on the place in the tensor."""
    port = free_port("127.0.0.1")
    summands = [torch.full((7, 1000), value) for value in (1e8, 3.0, -1e8)]

    def add_up(rank: int) -> torch.Tensor:
        group = connect_group(rank, 3, "127.0.0.1", port, 60.0, in_rank_order=True)
        total = group.all_reduce(summands[rank].clone())
        group.close()
        return total

    with ThreadPoolExecutor(3) as threads:
        for total in threads.map(add_up, range(3)):
            assert torch.equal(total, summands[0] + summands[1] + summands[2])
