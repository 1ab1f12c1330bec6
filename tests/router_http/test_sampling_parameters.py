"""Every sampling parameter reaches the replica from both endpoints, through the openai client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from protocol.tokens import unpack_tokens

MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS: list[tuple[str, Any, Any]] = [  # name, what a client sends, what `SamplingParams` says
    ("temperature", 0.5, 0.5),
    ("top_p", 0.9, 0.9),
    ("top_k", 7, 7),
    ("top_k", -1, 0),
    ("min_p", 0.1, 0.1),
    ("n", 2, 2),
    ("seed", 11, 11),
    ("max_tokens", 9, 9),
    ("min_tokens", 3, 3),
    ("stop", ["x", "yy"], ("x", "yy")),
    ("stop_token_ids", [9, 8, 9], (9, 8)),
    ("ignore_eos", True, True),
    ("presence_penalty", 1.5, 1.5),
    ("frequency_penalty", -1.5, -1.5),
    ("repetition_penalty", 1.2, 1.2),
    ("logit_bias", {"7": -200, "8": 1.5}, ((7, -100.0), (8, 1.5))),
    ("allowed_token_ids", [5, 6], (5, 6)),
    ("bad_words", ["fox"], ("fox",)),
    ("prompt_logprobs", 0, 0),
    ("include_stop_str_in_output", True, True),
    ("skip_special_tokens", False, False),
    ("spaces_between_special_tokens", False, False),
    ("truncate_prompt_tokens", 100, 100),
    ("truncation_side", "right", "right"),
]


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello")


async def ask(
    client: openai.AsyncOpenAI, chat: bool, prompt: Any = "the quick brown fox", **extra: Any
) -> Any:
    if chat:
        return await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": prompt}], extra_body=extra
        )
    return await client.completions.create(model="tiny", prompt=prompt, extra_body=extra)


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
@pytest.mark.parametrize(("name", "sent", "said"), PARAMETERS)
async def test_a_parameter_reaches_the_replica(
    client: openai.AsyncOpenAI, router: Any, chat: bool, name: str, sent: Any, said: Any
) -> None:
    await ask(client, chat, **{name: sent})
    assert getattr(router.requests[0].sampling, name) == said


@pytest.mark.parametrize("width", [0, 20])
async def test_logprobs_are_asked_for_in_either_endpoints_words(
    client: openai.AsyncOpenAI, router: Any, width: int
) -> None:
    await ask(client, False, logprobs=width)
    await ask(client, True, logprobs=True, top_logprobs=width)
    assert [request.sampling.logprobs for request in router.requests] == [width, width]


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
async def test_a_bad_word_travels_in_all_its_spellings(
    client: openai.AsyncOpenAI, router: Any, tokenizer: Any, chat: bool
) -> None:
    await ask(client, chat, bad_words=["fox"])
    spellings = {tuple(tokenizer.encode("fox")), tuple(tokenizer.encode(" fox"))}
    assert set(router.requests[0].sampling.bad_word_ids) == spellings


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
async def test_a_long_prompt_keeps_the_end_or_the_beginning(
    client: openai.AsyncOpenAI, router: Any, chat: bool
) -> None:
    for extra in (
        {},
        {"truncate_prompt_tokens": 4},
        {"truncate_prompt_tokens": 4, "truncation_side": "right"},
    ):
        await ask(client, chat, **extra)
    whole, last, first = (list(unpack_tokens(request.token_ids)) for request in router.requests)
    assert (last, first) == (whole[-4:], whole[:4])


async def test_the_tokens_left_out_are_not_counted(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, False, truncate_prompt_tokens=4)
    assert answer.usage.prompt_tokens == 4


@pytest.mark.parametrize(("chat", "rest"), [(False, 16), (True, 1)], ids=["completions", "chat"])
async def test_minus_one_leaves_room_for_what_is_to_come(
    client: openai.AsyncOpenAI, router: Any, chat: bool, rest: int
) -> None:
    await ask(client, chat, "a b " * 300, truncate_prompt_tokens=-1)
    await ask(client, chat, "a b " * 300, truncate_prompt_tokens=-1, max_tokens=40)
    for request, room in zip(router.requests, (rest, 40), strict=True):
        assert len(unpack_tokens(request.token_ids)) == 256 - room
        assert request.sampling.max_tokens == room


async def test_no_truncation_makes_room_for_more_than_the_context(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(client, False, truncate_prompt_tokens=-1, max_tokens=256)
    assert refused.value.code == "context_length_exceeded"


async def test_what_was_cut_off_is_not_echoed(client: openai.AsyncOpenAI, tokenizer: Any) -> None:
    answer = await ask(client, False, truncate_prompt_tokens=3, echo=True)
    kept = tokenizer.decode(tokenizer.encode("the quick brown fox")[-3:])
    assert answer.choices[0].text == kept + "hello"
