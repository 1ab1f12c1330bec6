"""Log-probabilities of prompts: those of a cold engine, in whatever order requests come and whatever is cached."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from protocol.block_hash import SECRET_BYTES
from protocol.messages import SequenceOutput, Submit, TokenLogprob
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from workers.engine import Engine
from workers.engine_builder import build_engine
from workers.engine_config import EngineConfig

SHARED = [(13 * index) % 89 + 3 for index in range(40)]
PROMPTS = ([*SHARED, 7, 9], [*SHARED, 50, 51, 52, 53, 54], SHARED[:33], [5, 6, 7, 8, 9, 10, 11])
SCORED = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=3, ignore_eos=True, seed=0)
PLAIN = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, seed=0)

OpenEngine = Callable[..., Engine]


@pytest.fixture
def open_engine(open_runner: Any) -> OpenEngine:
    """Over a small random Llama in fp32, with blocks of four tokens."""

    def open_one(**config: Any) -> Engine:
        options = EngineConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 2048, **config})
        return build_engine(options, open_runner(max_num_seqs=4), bytes(SECRET_BYTES))

    return open_one


def run(engine: Engine, requests: Sequence[tuple[str, list[int], SamplingParams]]) -> list[SequenceOutput]:
    for name, prompt, sampling in requests:
        engine.submit(Submit(name, pack_tokens(prompt), sampling))
    rows, outputs = TokenRows(), list[SequenceOutput]()
    while engine.has_work:
        report = engine.step()
        outputs += rows.expand(report.outputs, report.rows, report.tokens)
    return outputs


def scores_of(outputs: Sequence[SequenceOutput], name: str) -> tuple[TokenLogprob, ...]:
    found = [each.prompt_logprobs for each in outputs if each.request_id == name and each.prompt_logprobs]
    assert len(found) == 1, f"{name} brought its prompt's logprobs {len(found)} times"
    assert found[0] is not None
    return found[0]


def assert_equal(found: Sequence[TokenLogprob], expected: Sequence[TokenLogprob]) -> None:
    assert [each.rank for each in found] == [each.rank for each in expected]
    assert [[token for token, _ in each.top] for each in found] == [
        [token for token, _ in each.top] for each in expected
    ]
    torch.testing.assert_close(
        torch.tensor([each.logprob for each in found]), torch.tensor([each.logprob for each in expected])
    )


@pytest.fixture
def cold(open_engine: OpenEngine) -> list[tuple[TokenLogprob, ...]]:
    """What engines that have seen nothing else say of each prompt."""
    return [scores_of(run(open_engine(), [("r", prompt, SCORED)]), "r") for prompt in PROMPTS]


def test_they_are_those_of_transformers(
    cold: list[tuple[TokenLogprob, ...]], make_checkpoint: Any, reference_logits: Any
) -> None:
    for prompt, scored in zip(PROMPTS, cold, strict=True):
        expected = reference_logits(make_checkpoint(), prompt).log_softmax(-1)[:-1]
        own = expected.gather(1, torch.tensor(prompt[1:])[:, None]).flatten()
        torch.testing.assert_close(torch.tensor([each.logprob for each in scored]), own, rtol=1e-4, atol=1e-4)
        assert [each.top[0][0] for each in scored] == expected.argmax(-1).tolist()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_no_order_of_requests_changes_them(
    order: tuple[int, ...], open_engine: OpenEngine, cold: list[tuple[TokenLogprob, ...]]
) -> None:
    engine = open_engine()
    run(engine, [("warm", PROMPTS[order[0]], PLAIN)])
    outputs = run(engine, [(str(index), PROMPTS[index], SCORED) for index in order])
    for index in order:
        assert_equal(scores_of(outputs, str(index)), cold[index])
        assert {each.num_cached_tokens for each in outputs if each.request_id == str(index)} == {0}


@pytest.mark.parametrize("budget", (4, 7, 16))
def test_a_prompt_in_chunks_is_scored_like_a_whole_one(
    budget: int, open_engine: OpenEngine, cold: list[tuple[TokenLogprob, ...]]
) -> None:
    engine = open_engine(max_num_batched_tokens=budget)
    outputs = run(engine, [(str(index), prompt, SCORED) for index, prompt in enumerate(PROMPTS)])
    for index, expected in enumerate(cold):
        assert_equal(scores_of(outputs, str(index)), expected)


def test_a_scored_prompt_fills_the_cache_for_others(open_engine: OpenEngine) -> None:
    engine = open_engine()
    run(engine, [("scored", SHARED, SCORED)])
    outputs = run(engine, [("plain", SHARED, PLAIN)])
    assert outputs[0].num_cached_tokens == 36
    assert engine.load().cache.bypassed == len(SHARED)


def test_scores_can_be_had_without_generating(open_engine: OpenEngine, cold: list[Any]) -> None:
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=3, seed=0)
    (only,) = run(open_engine(), [("r", PROMPTS[0], sampling)])
    assert only.token_ids == () and only.prompt_logprobs is not None
    assert_equal(only.prompt_logprobs, cold[0])


def test_of_several_sequences_one_brings_the_scores(open_engine: OpenEngine, cold: list[Any]) -> None:
    sampling = SamplingParams(n=3, max_tokens=4, prompt_logprobs=3, seed=0)
    outputs = run(open_engine(), [("r", PROMPTS[1], sampling)])
    assert_equal(scores_of(outputs, "r"), cold[1])


def test_a_preempted_prompt_is_scored_once(open_runner: Any, cold: list[Any]) -> None:
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=2048)
    block_bytes = 2 * 3 * 4 * 2 * 8 * 4
    runner = open_runner(max_num_seqs=4, kv_cache_memory_bytes=28 * block_bytes, max_model_len=100)
    engine = build_engine(config, runner, bytes(SECRET_BYTES))
    longer = SamplingParams(temperature=0.0, max_tokens=30, prompt_logprobs=3, ignore_eos=True, seed=0)
    outputs = run(engine, [("a", PROMPTS[0], longer), ("b", PROMPTS[1], longer)])
    assert engine.load().num_preemptions > 0
    assert_equal(scores_of(outputs, "a"), cold[0])
    assert_equal(scores_of(outputs, "b"), cold[1])
