"""The offline library as its users call it, on the built-in model."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from trunkline import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
PROMPTS = ["The capital of France is", "Hello, my name is", "The capital of Japan is"]


def texts(outputs: list[Any]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert "Paris" in outputs[0].outputs[0].text and "Tokyo" in outputs[2].outputs[0].text


def test_a_batch_says_what_each_prompt_says_alone(llm: LLM) -> None:
    alone = [texts(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in PROMPTS]
    assert texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == alone


def test_token_ids_serve_as_a_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[0])
    for prompt in (ids, [ids], {"prompt_token_ids": ids}):
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]  # type: ignore[arg-type]
        assert output.prompt is None and output.prompt_token_ids == ids
        assert "Paris" in output.outputs[0].text


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (1, 2, 3)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_a_number_of_parameters_that_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="3 prompts need"):
        llm.generate(PROMPTS, [GREEDY], use_tqdm=False)


def test_the_same_seed_draws_the_same_and_n_draws_differ(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=5, max_tokens=12)
    one, again = (llm.generate("Once upon a time", params, use_tqdm=False)[0] for _ in range(2))
    assert [each.text for each in one.outputs] == [each.text for each in again.outputs]
    assert len({each.text for each in one.outputs}) > 1


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    free = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].text
    stop = free.strip().split()[0][1:4]
    output = llm.generate(PROMPTS[0], SamplingParams(temperature=0, stop=(stop,)), use_tqdm=False)[0].outputs[
        0
    ]
    assert output.text == free[: free.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_logprobs_name_the_drawn_token_first(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=3)
    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None and len(output.logprobs) == len(output.token_ids)
    for token_id, position in zip(output.token_ids, output.logprobs, strict=True):
        assert position[token_id].rank == 1 and len(position) == 3
    drawn = sum(each[token].logprob for token, each in zip(output.token_ids, output.logprobs, strict=True))
    assert output.cumulative_logprob == pytest.approx(drawn)


def test_a_repeated_prompt_is_reported_as_cached_and_a_reset_forgets_it(llm: LLM) -> None:
    prompt = "A story about a fox. " * 20
    num_tokens = len(llm.tokenizer.encode(prompt))
    llm.generate(prompt, GREEDY, use_tqdm=False)
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens == (num_tokens - 1) // 16 * 16
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_a_chat_turn_stops_by_itself(llm: LLM) -> None:
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(turn, SamplingParams(temperature=0.0, max_tokens=64), use_tqdm=False)[0].outputs[0]
    assert "Paris" in output.text and output.finish_reason == "stop"


def test_a_prompt_over_the_context_is_refused_and_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded):
        llm.generate([PROMPTS[0], [1] * (llm.max_model_len + 1)], GREEDY, use_tqdm=False)
    assert llm.get_metrics().num_used_blocks == 0
    assert texts(llm.generate(PROMPTS[:1], GREEDY, use_tqdm=False))


@pytest.mark.parametrize("prompt", ["", [], [[]], [None]], ids=repr)
def test_an_empty_prompt_is_refused(llm: LLM, prompt: Any) -> None:
    if prompt == []:
        assert llm.generate(prompt, GREEDY, use_tqdm=False) == []
        return
    with pytest.raises(InvalidRequest):
        llm.generate(prompt, GREEDY, use_tqdm=False)


def test_two_of_them_do_not_disturb_each_other(llm: LLM) -> None:
    before = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    with LLM("sapling", dtype="float32", use_tqdm=False, enable_prefix_caching=False) as other:
        assert texts(other.generate(PROMPTS, GREEDY, use_tqdm=False)) == before
        assert texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == before
    assert texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == before


def test_after_shutdown_it_says_so() -> None:
    gone = LLM("sapling", load_format="dummy", use_tqdm=False)
    gone.shutdown()
    gone.shutdown()
    with pytest.raises(InvalidRequest, match="shut down"):
        gone.generate("x", use_tqdm=False)


def test_two_ranks_say_what_one_says(llm: LLM) -> None:
    alone = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    with LLM("sapling", dtype="float32", tensor_parallel_size=2, use_tqdm=False) as pair:
        assert texts(pair.generate(PROMPTS, GREEDY, use_tqdm=False)) == alone


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="3"):
        LLM("sapling", tensor_parallel_size=3, use_tqdm=False)


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelNotFound):
        LLM("./no-such-model", use_tqdm=False)


def test_a_stop_string_ends_one_sequence_and_not_its_siblings(llm: LLM) -> None:
    free = llm.generate(
        "Once upon a time", SamplingParams(n=3, seed=3, max_tokens=20, ignore_eos=True), False
    )
    stop = free[0].outputs[0].text[4:9]
    params = SamplingParams(n=3, seed=3, max_tokens=20, ignore_eos=True, stop=(stop,))
    outputs = llm.generate("Once upon a time", params, use_tqdm=False)[0].outputs
    expected = [each.text.split(stop)[0] for each in free[0].outputs]
    assert [each.text for each in outputs] == expected
    assert outputs[0].stop_reason == stop and llm.get_metrics().num_used_blocks == 0
