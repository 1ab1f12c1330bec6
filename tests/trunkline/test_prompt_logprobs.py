"""`prompt_logprobs` and what else a prompt's user may ask of it, offline, on the built-in model."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import ContextLengthExceeded, InvalidRequest
from protocol.model_source import resolve_model
from trunkline import LLM, SamplingParams

STORY = "Once upon a time there was a fox who lived in a small house near the river. " * 4
SCORED = SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=3, ignore_eos=True)


def scores(output: Any) -> list[float]:
    """Each prompt token's own logprob, but for the first."""
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [position[token_id].logprob for token_id, position in pairs]


def ask(llm: LLM, prompt: Any = STORY, **options: Any) -> Any:
    return llm.generate(prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **options}), False)[0]


def test_a_prompt_of_greedy_tokens_is_what_the_model_would_have_said(llm: LLM) -> None:
    said = ask(llm, max_tokens=24, logprobs=0, ignore_eos=True)
    ids = said.prompt_token_ids + said.outputs[0].token_ids
    scored = llm.generate([ids], SamplingParams(max_tokens=0, prompt_logprobs=0), use_tqdm=False)[0]
    tail = scored.prompt_logprobs[-24:]
    assert [position[token].rank for token, position in zip(ids[-24:], tail, strict=True)] == [1] * 24
    drawn = [entry[token].logprob for token, entry in zip(ids[-24:], said.outputs[0].logprobs, strict=True)]
    assert [entry[token].logprob for token, entry in zip(ids[-24:], tail, strict=True)] == pytest.approx(
        drawn, abs=1e-3
    )


def test_alternatives_are_ranked_from_the_likeliest_on(llm: LLM) -> None:
    output = llm.generate(STORY, SCORED, use_tqdm=False)[0]
    assert output.prompt_logprobs[0] is None
    for token_id, position in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        others = [entry for other, entry in position.items() if other != token_id]
        best = [entry for entry in position.values() if entry.rank == 1]
        assert len(best) == 1 and len(position) in (3, 4)
        assert all(entry.logprob <= best[0].logprob for entry in others)


def test_scores_do_not_depend_on_what_is_cached(llm: LLM) -> None:
    llm.reset_prefix_cache()
    cold = llm.generate(STORY, SCORED, use_tqdm=False)[0]
    warm = llm.generate(STORY, SCORED, use_tqdm=False)[0]
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 0)
    assert scores(warm) == pytest.approx(scores(cold), abs=1e-4)
    assert ask(llm).num_cached_tokens > 0  # it was written to, all the same


def test_scores_do_not_depend_on_the_order_of_requests(llm: LLM) -> None:
    prompts = [STORY, STORY[:120], STORY + "It was red.", "A cat"]
    llm.reset_prefix_cache()
    one = llm.generate(prompts, SCORED, use_tqdm=False)
    llm.reset_prefix_cache()
    other = llm.generate(prompts[::-1], SCORED, use_tqdm=False)[::-1]
    for first, second in zip(one, other, strict=True):
        assert scores(first) == pytest.approx(scores(second), abs=1e-4)


def test_several_sequences_share_the_scores_of_their_prompt(llm: LLM) -> None:
    alone = llm.generate(STORY, SCORED, use_tqdm=False)[0]
    shared = ask(llm, n=3, temperature=1.0, seed=1, prompt_logprobs=3)
    assert scores(shared) == pytest.approx(scores(alone), abs=1e-4)
    assert len(shared.outputs) == 3


def test_a_long_prompt_is_scored_over_many_steps(llm: LLM) -> None:
    ids = llm.tokenizer.encode(STORY * 12)[:900]
    with LLM("sapling", dtype="float32", use_tqdm=False, max_num_batched_tokens=64) as small:
        chunked = small.generate([ids], SCORED, use_tqdm=False)[0]
    assert scores(chunked) == pytest.approx(scores(llm.generate([ids], SCORED, use_tqdm=False)[0]), abs=1e-3)


def test_a_prompt_of_one_token_has_nothing_to_score(llm: LLM) -> None:
    assert ask(llm, [[5]], prompt_logprobs=2).prompt_logprobs == [None]


def test_a_prompt_as_long_as_the_context_can_be_scored(llm: LLM) -> None:
    with LLM("sapling", dtype="float32", use_tqdm=False, max_model_len=64) as short:
        ids = list(range(5, 69))
        assert len(scores(ask(short, [ids], max_tokens=0, prompt_logprobs=0))) == 63
        with pytest.raises(ContextLengthExceeded):
            ask(short, [ids], max_tokens=1)


def test_a_bad_word_is_not_said_with_or_without_a_space(llm: LLM) -> None:
    question = "The capital of France is"
    assert "Paris" in ask(llm, question, max_tokens=8).outputs[0].text
    assert "Paris" not in ask(llm, question, max_tokens=8, bad_words=["Paris"]).outputs[0].text


def test_a_cut_prompt_is_answered_as_if_it_had_come_so(llm: LLM) -> None:
    ids = llm.tokenizer.encode(STORY)
    cut = ask(llm, truncate_prompt_tokens=20)
    assert cut.prompt == STORY and cut.prompt_token_ids == ids[-20:]
    assert cut.outputs[0].token_ids == ask(llm, [ids[-20:]]).outputs[0].token_ids


def test_a_prompt_over_the_context_can_be_cut_to_it(llm: LLM) -> None:
    too_long = [5] * (llm.max_model_len + 100)
    output = ask(llm, [too_long], truncate_prompt_tokens=-1)
    assert len(output.prompt_token_ids) == llm.max_model_len - 4


def test_with_detokenize_off_only_ids_come_back(llm: LLM) -> None:
    plain, ids = ask(llm), ask(llm, detokenize=False)
    assert ids.outputs[0].text == "" and ids.outputs[0].token_ids == plain.outputs[0].token_ids


def test_stop_strings_need_text() -> None:
    with pytest.raises(InvalidRequest, match="detokenize"):
        SamplingParams(detokenize=False, stop="x")


def test_scores_are_those_of_the_reference(llm: LLM) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(resolve_model("sapling").directory, dtype=torch.float32)
    output = llm.generate(STORY, SCORED, use_tqdm=False)[0]
    ids = torch.tensor(output.prompt_token_ids)
    with torch.no_grad():
        expected = model(ids[None]).logits[0, :-1].log_softmax(-1)
    own = expected.gather(1, ids[1:, None])
    assert scores(output) == pytest.approx(own.flatten().tolist(), abs=1e-3)
    ranks = ((expected > own).sum(-1) + 1).tolist()
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    assert [position[token].rank for token, position in pairs] == ranks
