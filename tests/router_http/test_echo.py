"""`echo`: the prompt in front of every choice, and with logprobs its tokens in front of the generated ones."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from protocol.messages import TokenLogprob

PROMPT = "the größer fox"


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello 你好")


async def whole(client: openai.AsyncOpenAI, **options: Any) -> Any:
    options = {"model": "tiny", "prompt": PROMPT, "echo": True, "max_tokens": 50, **options}
    return await client.completions.create(**options)


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> list[Any]:
    options = {"model": "tiny", "prompt": PROMPT, "echo": True, "max_tokens": 50, **options}
    return [chunk async for chunk in await client.completions.create(stream=True, **options)]


def of_choice(chunks: list[Any], index: int = 0) -> list[Any]:
    return [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]


async def test_the_prompts_tokens_come_before_the_generated_ones(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    prompt = tokenizer.encode(PROMPT)
    choice = (await whole(client, logprobs=1)).choices[0]
    assert choice.text == PROMPT + "hello 你好"
    assert choice.logprobs.tokens == [
        tokenizer.token_text(each) for each in [*prompt, *router.script.token_ids]
    ]
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1 : len(prompt)] == [
        -float(place) for place in range(1, len(prompt))
    ]


@pytest.mark.parametrize("as_ids", [False, True])
async def test_offsets_point_into_the_text_that_is_shown(
    client: openai.AsyncOpenAI, tokenizer: Any, as_ids: bool
) -> None:
    prompt = tokenizer.encode(PROMPT) if as_ids else PROMPT
    choice = (await whole(client, logprobs=0, prompt=prompt)).choices[0]
    offsets, tokens = choice.logprobs.text_offset, choice.logprobs.tokens
    assert offsets == sorted(offsets) and len(offsets) == len(tokens)
    for offset, token in zip(offsets, tokens, strict=True):
        assert "\ufffd" in token or token == "<|end|>" or choice.text.startswith(token, offset)
    assert offsets[len(tokenizer.encode(PROMPT))] == len(PROMPT)


async def test_the_engine_is_asked_to_score_as_widely_as_the_client_wants(
    client: openai.AsyncOpenAI, router: Any
) -> None:
    await whole(client, logprobs=3)
    await whole(client)
    await whole(client, logprobs=2, extra_body={"prompt_logprobs": 5})
    assert [request.sampling.prompt_logprobs for request in router.requests] == [3, None, 5]


async def test_each_reader_gets_the_width_that_it_asked_for(client: openai.AsyncOpenAI) -> None:
    choice = (await whole(client, logprobs=1, extra_body={"prompt_logprobs": 3})).choices[0]
    assert len(choice.logprobs.top_logprobs[1]) == 2  # the token itself and the likeliest
    assert len(choice.prompt_logprobs[1]) == 4


async def test_a_prompt_can_be_scored_and_not_continued(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    answer = await whole(client, max_tokens=0, logprobs=1)
    choice, ids = answer.choices[0], tokenizer.encode(PROMPT)
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert len(choice.logprobs.tokens) == len(ids)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)
    assert router.requests[0].sampling.max_tokens == 0


async def test_a_prompt_as_long_as_the_context_can_be_scored(http: httpx2.AsyncClient) -> None:
    body = {"prompt": [5] * 256, "echo": True, "max_tokens": 0, "logprobs": 0}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    refused = await http.post("/v1/completions", json=body | {"max_tokens": 1})
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_a_score_is_measured_as_a_request_without_a_first_token(http: httpx2.AsyncClient) -> None:
    body = {"prompt": [5] * 9, "echo": True, "max_tokens": 0, "logprobs": 0, "n": 2}
    await http.post("/v1/completions", json=body)
    page = (await http.get("/metrics")).text
    assert 'trunkline_prompt_tokens_total{model_name="tiny"} 9.0' in page
    assert 'trunkline_time_to_first_token_seconds_count{model_name="tiny"} 0.0' in page


@pytest.mark.parametrize("max_tokens", [0, 50])
async def test_a_stream_says_the_same_as_the_whole(client: openai.AsyncOpenAI, max_tokens: int) -> None:
    options: dict[str, Any] = {"max_tokens": max_tokens, "logprobs": 2, "n": 2}
    answer, chunks = await whole(client, **options), await streamed(client, **options)
    for choice in answer.choices:
        parts = of_choice(chunks, choice.index)
        assert "".join(part.text for part in parts) == choice.text
        for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [each for part in parts if part.logprobs for each in getattr(part.logprobs, column)]
            assert joined == getattr(choice.logprobs, column)


async def test_the_first_chunk_of_every_choice_has_its_prompt(client: openai.AsyncOpenAI) -> None:
    chunks = await streamed(client, n=3, prompt=["the fox", "a dog"])
    begins = [of_choice(chunks, index)[0].text for index in range(6)]
    assert all(
        text.startswith(prompt) for text, prompt in zip(begins, ["the fox"] * 3 + ["a dog"] * 3, strict=True)
    )


async def test_a_stop_string_is_looked_for_behind_the_prompt(client: openai.AsyncOpenAI) -> None:
    choice = (await whole(client, stop=["fox", "lo"])).choices[0]
    assert (choice.text, choice.finish_reason) == (PROMPT + "hel", "stop")


async def test_a_character_that_the_prompt_began_is_shown_once(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    ids = tokenizer.encode("a猫!")
    router.script.token_ids = [*ids[2:], *tokenizer.eos_token_ids]
    assert (await whole(client, prompt=ids[:2])).choices[0].text == "a猫!"


async def test_special_tokens_of_ids_are_shown_on_demand(client: openai.AsyncOpenAI, tokenizer: Any) -> None:
    ids = tokenizer.encode("<|user|>a")
    assert (await whole(client, prompt=ids, max_tokens=0)).choices[0].text == "a"
    shown = await whole(client, prompt=ids, max_tokens=0, extra_body={"skip_special_tokens": False})
    assert shown.choices[0].text == "<|user|>a"


async def test_a_harness_reads_the_likelihood_of_a_continuation(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    """As lm-eval does: ids in, one token out, which is dropped; greedy is whatever nothing in `top` exceeds."""
    context, continuation = tokenizer.encode("the"), tokenizer.encode(" fox")
    sure = [TokenLogprob(-0.5, 1, ((token_id, -0.5),)) for token_id in (*context[1:], *continuation)]
    doubtful = [*sure[:-1], TokenLogprob(-3.0, 2, ((1, -0.1),))]
    for scores, greedy, total in ((sure, True, -0.5), (doubtful, False, -3.0)):
        router.script.scores = scores
        answer = await whole(
            client, prompt=[[*context, *continuation]], max_tokens=1, logprobs=1, temperature=0
        )
        columns, begin = answer.choices[0].logprobs, len(context)
        values, tops = columns.token_logprobs[begin:-1], columns.top_logprobs[begin:-1]
        assert len(values) == len(continuation)
        assert sum(values) == -0.5 * (len(values) - 1) + total
        assert all(value == max(top.values()) for value, top in zip(values, tops, strict=True)) is greedy


async def test_of_tokens_that_read_alike_the_likeliest_is_told(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    halves = [tokenizer.encode("猫")[0], tokenizer.encode("猫")[1]]
    router.script.scores = [TokenLogprob(-2.0, 2, ((halves[0], -0.5), (halves[1], -2.0)))]
    answer = await whole(client, prompt=[5, halves[1]], max_tokens=0, logprobs=2)
    assert answer.choices[0].logprobs.top_logprobs[1] == {"\ufffd": -0.5}


async def test_a_long_scored_answer_is_as_whole_as_a_short_one(client: openai.AsyncOpenAI) -> None:
    prompt = [5 + place % 200 for place in range(200)]
    one, *others = (await whole(client, prompt=prompt, logprobs=1, n=8, max_tokens=0)).choices
    alone = (await whole(client, prompt=prompt, logprobs=1, max_tokens=0)).choices[0]
    assert one.logprobs == alone.logprobs and len(others) == 7
    assert all(other.logprobs == alone.logprobs for other in others)
