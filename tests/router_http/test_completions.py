"""/v1/completions, driven by the openai client over a real socket."""

from __future__ import annotations

from typing import Any

import openai
import pytest


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello world 你好", cached=2)


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> list[Any]:
    options = {"model": "tiny", "prompt": "the fox", "max_tokens": 50, **options}
    return [chunk async for chunk in await client.completions.create(stream=True, **options)]


async def whole(client: openai.AsyncOpenAI, **options: Any) -> Any:
    return await client.completions.create(
        **{"model": "tiny", "prompt": "the fox", "max_tokens": 50, **options}
    )


async def test_a_completion_has_text_usage_and_reason(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    answer = await whole(client)
    assert answer.choices[0].text == "hello world 你好"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(tokenizer.encode("the fox"))
    assert answer.usage.completion_tokens == len(router.script.token_ids)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.id.startswith("cmpl-")


async def test_cached_tokens_are_written_out_when_there_are_none(
    client: openai.AsyncOpenAI, router: Any
) -> None:
    router.script.cached = 0
    assert (await whole(client)).usage.prompt_tokens_details.cached_tokens == 0


async def test_a_stream_says_the_same_as_the_whole(client: openai.AsyncOpenAI) -> None:
    answer, chunks = await whole(client), await streamed(client, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == answer.choices[0].text
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == answer.usage
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


async def test_no_usage_comes_in_a_stream_unasked(client: openai.AsyncOpenAI) -> None:
    assert all(chunk.usage is None for chunk in await streamed(client))


async def test_continuous_usage_grows_in_every_chunk(client: openai.AsyncOpenAI) -> None:
    chunks = await streamed(client, stream_options={"continuous_usage_stats": True})
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] >= 1


async def test_no_chunk_holds_part_of_a_character(client: openai.AsyncOpenAI) -> None:
    assert all("\ufffd" not in chunk.choices[0].text for chunk in await streamed(client))


async def test_two_choices_come_mixed_and_numbered(client: openai.AsyncOpenAI) -> None:
    chunks = await streamed(client, n=2)
    texts = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == index) for index in (0, 1)]
    assert texts == ["hello world 你好"] * 2
    assert [choice.index for choice in (await whole(client, n=2)).choices] == [0, 1]


async def test_the_answer_ends_before_a_stop_string(client: openai.AsyncOpenAI, router: Any) -> None:
    choice = (await whole(client, stop=["wor"])).choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("hello ", "stop", "wor")
    chunks = await streamed(client, stop=["wor"])
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello "
    assert router.num_open == 0


async def test_length_ends_an_answer(client: openai.AsyncOpenAI) -> None:
    answer = await whole(client, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 1


async def test_a_list_of_prompts_numbers_the_choices_through(client: openai.AsyncOpenAI, router: Any) -> None:
    answer = await whole(client, prompt=["a", "b"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert len({request.request_id for request in router.requests}) == 2
    chunks = await streamed(client, prompt=["a", "b"])
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


async def test_token_ids_are_a_prompt(client: openai.AsyncOpenAI, router: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("the fox")
    await whole(client, prompt=ids)
    await whole(client, prompt=[ids])
    await whole(client, prompt="the fox")
    assert len({request.token_ids for request in router.requests}) == 1


async def test_echo_puts_the_prompt_in_front(client: openai.AsyncOpenAI, tokenizer: Any) -> None:
    wanted = "the fox" + "hello world 你好"
    assert (await whole(client, echo=True)).choices[0].text == wanted
    assert (await whole(client, echo=True, prompt=tokenizer.encode("the fox"))).choices[0].text == wanted
    assert "".join(chunk.choices[0].text for chunk in await streamed(client, echo=True)) == wanted


async def test_logprobs_come_in_columns(client: openai.AsyncOpenAI) -> None:
    columns = (await whole(client, logprobs=2)).choices[0].logprobs
    assert "".join(columns.tokens).startswith("hello world")
    assert columns.text_offset[:2] == [0, len(columns.tokens[0])]
    assert columns.token_logprobs[0] == -1.0
    assert len(columns.top_logprobs[0]) == 2
    chunks = await streamed(client, logprobs=2)
    offsets = [
        at for chunk in chunks if chunk.choices[0].logprobs for at in chunk.choices[0].logprobs.text_offset
    ]
    assert offsets == columns.text_offset


async def test_a_request_carries_what_was_asked(client: openai.AsyncOpenAI, router: Any) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "prompt_cache_key": "s1", "priority": 2, "logit_bias": {"7": 200}}
    await whole(client, seed=11, temperature=0.5, stop="x", extra_body=extra)
    request = router.requests[0]
    sampling = request.sampling
    assert (sampling.seed, sampling.temperature, sampling.stop, sampling.top_k) == (11, 0.5, ("x",), 5)
    assert sampling.logit_bias == ((7, 100.0),)
    assert (request.affinity, request.priority) == ("s1", 2)


async def test_a_seed_is_drawn_where_none_is_given(client: openai.AsyncOpenAI, router: Any) -> None:
    await whole(client)
    await whole(client, max_tokens=None)
    first, second = (request.sampling for request in router.requests)
    assert first.seed is not None
    assert first.seed != second.seed
    assert second.max_tokens == 16


async def test_headers_say_where_it_ran_and_why(client: openai.AsyncOpenAI) -> None:
    raw = await client.completions.with_raw_response.create(
        model="tiny", prompt="a", extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-trunkline-replica"] == "replica-1"
    assert raw.headers["x-trunkline-route-reason"] == "prefix"
    assert raw.headers["x-trunkline-predicted-cached-tokens"] == "2"
    assert raw.headers["x-trunkline-best-cached-tokens"] == "18"
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().id == "cmpl-mine-1"


async def test_equal_labels_of_clients_do_not_meet_inside(client: openai.AsyncOpenAI, router: Any) -> None:
    for _ in range(2):
        await whole(client, extra_body={"request_id": "same"})
    assert len({request.request_id for request in router.requests}) == 2


async def test_a_stop_string_stops_its_own_sequence_at_the_replica(
    client: openai.AsyncOpenAI, router: Any
) -> None:
    answer = await whole(client, stop=[" wor"], n=2)
    assert [choice.text for choice in answer.choices] == ["hello"] * 2
    assert router.generations[-1].stopped == [0, 1]


async def test_a_sequence_that_ends_by_itself_is_not_stopped(client: openai.AsyncOpenAI, router: Any) -> None:
    await whole(client)
    assert router.generations[-1].stopped == []
