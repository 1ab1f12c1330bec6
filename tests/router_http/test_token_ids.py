"""`return_token_ids` and `return_tokens_as_token_ids`: answers whose tokens can be told apart."""

from __future__ import annotations

from typing import Any

import openai
import pytest

MESSAGES = [{"role": "user", "content": "hi"}]
IDS = {"return_token_ids": True}


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello 你好")


async def completion(client: openai.AsyncOpenAI, **options: Any) -> Any:
    return await client.completions.create(
        **{"model": "tiny", "prompt": "the fox", "max_tokens": 50, **options}
    )


async def chat(client: openai.AsyncOpenAI, **options: Any) -> Any:
    return await client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **options})


async def test_a_completion_shows_the_ids_of_prompt_and_answer(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    choice = (await completion(client, extra_body=IDS)).choices[0]
    assert choice.prompt_token_ids == tokenizer.encode("the fox")
    assert choice.token_ids == router.script.token_ids


async def test_a_chat_answer_shows_them_too(client: openai.AsyncOpenAI, router: Any, tokenizer: Any) -> None:
    answer = await chat(client, extra_body=IDS)
    assert answer.prompt_token_ids == tokenizer.encode("<|user|>hi<|end|><|assistant|>")
    assert answer.choices[0].token_ids == router.script.token_ids


async def test_a_completions_stream_shows_every_id_once(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    chunks = [chunk async for chunk in await completion(client, extra_body=IDS, n=2, stream=True)]
    for index in (0, 1):
        parts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert [token_id for part in parts for token_id in part.token_ids] == router.script.token_ids
        assert [getattr(part, "prompt_token_ids", None) for part in parts] == [
            tokenizer.encode("the fox"),
            *[None] * (len(parts) - 1),
        ]


async def test_a_chat_stream_shows_the_prompts_in_its_first_chunk(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any
) -> None:
    chunks = [chunk async for chunk in await chat(client, extra_body=IDS, n=2, stream=True)]
    prompts = [getattr(chunk, "prompt_token_ids", None) for chunk in chunks]
    assert prompts == [tokenizer.encode("<|user|>hi<|end|><|assistant|>"), *[None] * (len(chunks) - 1)]
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == 1]
    ids = [token_id for part in parts for token_id in getattr(part, "token_ids", ())]
    assert ids == router.script.token_ids


async def test_ids_behind_a_stop_string_are_not_shown(client: openai.AsyncOpenAI, tokenizer: Any) -> None:
    choice = (await completion(client, extra_body=IDS, stop=["lo"])).choices[0]
    shown = tokenizer.decode(choice.token_ids)
    assert "lo" in shown and "lo" not in tokenizer.decode(choice.token_ids[:-1])


async def test_tokens_are_spelled_as_their_ids(client: openai.AsyncOpenAI, router: Any) -> None:
    extra = {"return_tokens_as_token_ids": True}
    ids = router.script.token_ids
    columns = (await completion(client, logprobs=1, extra_body=extra)).choices[0].logprobs
    assert columns.tokens == [f"token_id:{token_id}" for token_id in ids]
    assert set(columns.top_logprobs[0]) == {f"token_id:{ids[0]}"}
    assert columns.text_offset[:2] == [
        0,
        (await completion(client, logprobs=1)).choices[0].logprobs.text_offset[1],
    ]
    entries = (
        (await chat(client, logprobs=True, top_logprobs=2, extra_body=extra)).choices[0].logprobs.content
    )
    assert [entry.token for entry in entries] == columns.tokens
    assert entries[0].top_logprobs[1].token == f"token_id:{ids[0] + 1}"
