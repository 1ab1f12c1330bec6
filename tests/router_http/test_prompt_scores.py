"""`prompt_logprobs` on both endpoints, driven by the openai client over a real socket."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import openai
import pytest

from protocol.messages import TokenLogprob

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello", cached=0)


async def completion(client: openai.AsyncOpenAI, **extra: Any) -> Any:
    return await client.completions.create(model="tiny", prompt="the fox", extra_body=extra)


async def test_each_prompt_token_but_the_first_has_its_logprob(
    client: openai.AsyncOpenAI, tokenizer: Any
) -> None:
    ids = tokenizer.encode("the fox")
    first, *rest = (await completion(client, prompt_logprobs=0)).choices[0].prompt_logprobs
    assert first is None
    assert [list(position) for position in rest] == [[str(token_id)] for token_id in ids[1:]]
    assert rest[0][str(ids[1])] == {
        "logprob": -1.0,
        "rank": 2,
        "decoded_token": tokenizer.token_text(ids[1]),
    }


async def test_alternatives_come_with_their_rank(client: openai.AsyncOpenAI, tokenizer: Any) -> None:
    token_id = tokenizer.encode("the fox")[1]
    position = (await completion(client, prompt_logprobs=2)).choices[0].prompt_logprobs[1]
    assert [(key, entry["rank"]) for key, entry in position.items()] == [
        (str(token_id), 2),
        (str(token_id + 1), 1),
        (str(token_id + 2), 2),
    ]


async def test_every_choice_shows_the_logprobs_of_its_own_prompt(
    client: openai.AsyncOpenAI, tokenizer: Any
) -> None:
    answer = await client.completions.create(
        model="tiny", prompt=["the fox", "a"], n=2, extra_body={"prompt_logprobs": 0}
    )
    shown = [choice.prompt_logprobs for choice in answer.choices]
    assert shown[0] == shown[1] and len(shown[0]) == len(tokenizer.encode("the fox"))
    assert shown[2] == shown[3] == [None]


async def test_a_chat_answer_shows_them_beside_its_choices(
    client: openai.AsyncOpenAI, tokenizer: Any
) -> None:
    answer: Any = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, extra_body={"prompt_logprobs": 1}
    )
    ids = tokenizer.encode("<|user|>hi<|end|><|assistant|>")
    assert [None if each is None else next(iter(each)) for each in answer.prompt_logprobs] == [
        None,
        *map(str, ids[1:]),
    ]


async def test_what_json_cannot_say_has_a_floor(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    ids = tokenizer.encode("the fox")
    router.script.scores = [
        TokenLogprob(-math.inf, 9, ((7, math.nan), (8, -1e9))) for _ in range(len(ids) - 1)
    ]
    position = (await completion(client, prompt_logprobs=2)).choices[0].prompt_logprobs[1]
    assert {entry["logprob"] for entry in position.values()} == {-9999.0}
    assert (await completion(client, prompt_logprobs=2)).choices[0].prompt_logprobs[0] is None


async def test_nothing_is_shown_that_was_not_asked_for(http: httpx2.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={"prompt": "the fox"})).json()
    assert not {"prompt_logprobs", "token_ids", "prompt_token_ids"} & set(answer["choices"][0])


@pytest.mark.parametrize("chat", [False, True])
async def test_a_stream_shows_the_plain_ones_in_its_first_chunk(
    client: openai.AsyncOpenAI, chat: bool
) -> None:
    extra: dict[str, Any] = {"model": "tiny", "stream": True, "extra_body": {"prompt_logprobs": 0}}
    if chat:
        chunks = [chunk async for chunk in await client.chat.completions.create(messages=MESSAGES, **extra)]  # type: ignore[call-overload]
        shown = [getattr(chunk, "prompt_logprobs", None) for chunk in chunks]
    else:
        chunks = [chunk async for chunk in await client.completions.create(prompt="the fox", **extra)]  # type: ignore[call-overload]
        shown = [getattr(chunk.choices[0], "prompt_logprobs", None) for chunk in chunks]
    assert shown[0][0] is None and len(shown[0]) > 1
    assert len(shown) > 1 and not any(shown[1:])


async def test_an_answer_that_would_be_of_gigabytes_is_refused(http: httpx2.AsyncClient, router: Any) -> None:
    router.max_model_len = 100_000
    body = {"prompt": [5] * 3000, "n": 64, "logprobs": 20, "echo": True, "max_tokens": 1}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 400 and "ask for fewer" in answer.json()["error"]["message"]
    assert (await http.post("/v1/completions", json={**body, "n": 2})).status_code == 200
