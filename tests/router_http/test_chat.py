"""/v1/chat/completions, driven by the openai client over a real socket."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from protocol.tokens import unpack_tokens

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "größer 🙂", cached=1)


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> list[Any]:
    options = {"model": "tiny", "messages": MESSAGES, **options}
    return [chunk async for chunk in await client.chat.completions.create(stream=True, **options)]


async def whole(client: openai.AsyncOpenAI, **options: Any) -> Any:
    return await client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **options})


async def test_a_turn_is_answered(client: openai.AsyncOpenAI, router: Any) -> None:
    answer = await whole(client)
    assert answer.choices[0].message.content == "größer 🙂"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.id.startswith("chatcmpl-")


async def test_the_template_makes_the_prompt(client: openai.AsyncOpenAI, router: Any, tokenizer: Any) -> None:
    await whole(client)
    assert list(unpack_tokens(router.requests[0].token_ids)) == tokenizer.encode(
        "<|user|>hi<|end|><|assistant|>"
    )


async def test_content_may_come_in_parts(client: openai.AsyncOpenAI, router: Any) -> None:
    await whole(client)
    await whole(client, messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    assert router.requests[0].token_ids == router.requests[1].token_ids


async def test_max_tokens_is_the_rest_of_the_context(client: openai.AsyncOpenAI, router: Any) -> None:
    await whole(client)
    await whole(client, max_tokens=9, max_completion_tokens=5)
    prompt, first, second = (
        len(router.requests[0].token_ids) // 4,
        *(r.sampling.max_tokens for r in router.requests),
    )
    assert (first, second) == (256 - prompt, 5)


async def test_a_stream_says_the_same_as_the_whole(client: openai.AsyncOpenAI) -> None:
    answer, chunks = await whole(client), await streamed(client, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == answer.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].usage == answer.usage


async def test_each_choice_begins_with_a_role(client: openai.AsyncOpenAI) -> None:
    chunks = await streamed(client, n=2)
    for index in (0, 1):
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices[0].index == index]
        assert [delta.role for delta in deltas if delta.role] == ["assistant"]
        assert deltas[0].role == "assistant"


async def test_logprobs_spell_their_bytes(client: openai.AsyncOpenAI) -> None:
    entries = (await whole(client, logprobs=True, top_logprobs=3)).choices[0].logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in entries[:-1])
    assert spelled.decode() == "größer 🙂"
    assert [len(entry.top_logprobs) for entry in entries] == [3] * len(entries)
    plain = (await whole(client, logprobs=True)).choices[0].logprobs.content
    assert [entry.top_logprobs for entry in plain] == [[]] * len(plain)


async def test_a_begun_answer_is_continued(client: openai.AsyncOpenAI, router: Any, tokenizer: Any) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "well,"}]
    await whole(client, messages=messages, extra_body={"continue_final_message": True})
    sent = tokenizer.decode(unpack_tokens(router.requests[0].token_ids).tolist(), skip_special_tokens=False)
    assert sent == "<|user|>hi<|end|><|assistant|>well,"
