"""`LLM(kv_cache_dtype="fp8")` on the built-in model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trunkline import LLM, SamplingParams

PROMPTS = ["The capital of France is", "The capital of Japan is", "Once upon a time there was a"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
SCORED = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)


@pytest.fixture(scope="module")
def narrow() -> Iterator[LLM]:
    with LLM("sapling", dtype="float32", kv_cache_dtype="fp8", use_tqdm=False, max_num_seqs=16) as opened:
        yield opened


def scores(llm: LLM, token_ids: list[int]) -> list[float]:
    """Each token's own logprob, but for the first."""
    positions = llm.generate([token_ids], SCORED, use_tqdm=False)[0].prompt_logprobs
    pairs = zip(token_ids[1:], positions[1:], strict=True)
    return [position[token].logprob for token, position in pairs]


def test_a_trained_model_answers_as_it_does_over_a_wide_pool(llm: LLM, narrow: LLM) -> None:
    wide, found = (
        [each.outputs[0] for each in one.generate(PROMPTS, GREEDY, False)] for one in (llm, narrow)
    )
    assert [each.text for each in found] == [each.text for each in wide]
    assert "Paris" in found[0].text


def test_logprobs_of_a_story_are_off_by_little(llm: LLM, narrow: LLM) -> None:
    drawn = SamplingParams(temperature=1.0, seed=3, max_tokens=60, ignore_eos=True)
    told = llm.generate(PROMPTS[2], drawn, use_tqdm=False)[0]
    token_ids = [*told.prompt_token_ids, *told.outputs[0].token_ids]
    pairs = zip(scores(llm, token_ids), scores(narrow, token_ids), strict=True)
    errors = [abs(wide - found) for wide, found in pairs]
    assert 0.0 < sum(errors) / len(errors) < 0.1
