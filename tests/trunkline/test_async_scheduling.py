"""The offline library over overlapped steps: results are those of steps that wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trunkline import LLM, SamplingParams

PROMPTS = ["Once upon a time", "The capital of France is", "The fox and the bear", "A"]
WISHES = (
    SamplingParams(temperature=0.0, max_tokens=24),
    SamplingParams(temperature=0.9, top_p=0.9, frequency_penalty=0.5, max_tokens=24, seed=3, n=2),
    SamplingParams(temperature=0.0, max_tokens=40, stop=[" the"]),
    SamplingParams(temperature=0.7, seed=5, max_tokens=12, logprobs=2, prompt_logprobs=1),
)


@pytest.fixture(scope="module")
def overlapped() -> Iterator[LLM]:
    with LLM("sapling", dtype="float32", async_scheduling=True, use_tqdm=False) as shared:
        yield shared


def results(llm: LLM) -> list[tuple[object, ...]]:
    return [
        (each.text, each.token_ids, each.finish_reason, each.stop_reason)
        for output in llm.generate(PROMPTS, WISHES, use_tqdm=False)
        for each in output.outputs
    ]


def test_overlapped_steps_give_the_results_of_plain_ones(llm: LLM, overlapped: LLM) -> None:
    assert results(overlapped) == results(llm)
    assert overlapped.get_metrics().num_used_blocks == 0


def test_the_next_batch_reuses_what_overlapped_steps_cached(overlapped: LLM) -> None:
    prompt = (
        "There once was a fox who lived in a small house by the river, and every day it went to the river."
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=8)
    first, second = (overlapped.generate(prompt, greedy, use_tqdm=False)[0] for _ in range(2))
    assert second.outputs[0].token_ids == first.outputs[0].token_ids
    assert second.num_cached_tokens == (len(first.prompt_token_ids) - 1) // 16 * 16 > 0
