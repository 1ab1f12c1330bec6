"""Every way to be refused: the right status, OpenAI's shape, the parameter at fault."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from protocol import errors
from protocol.membership import ServedModel

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello")


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "a", **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": USER, **fields}


BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"model": "tiny"}, "prompt"),
    (COMPLETIONS, completion(prompt=""), "prompt"),
    (COMPLETIONS, completion(prompt=[]), "prompt"),
    (COMPLETIONS, completion(prompt=[[]]), "prompt"),
    (COMPLETIONS, completion(prompt=["a", ""]), "prompt"),
    (COMPLETIONS, completion(prompt=[1, "a"]), "prompt"),
    (COMPLETIONS, completion(prompt=[1, 99999]), "prompt"),
    (COMPLETIONS, completion(prompt=[-1]), "prompt"),
    (COMPLETIONS, completion(prompt=3), "prompt"),
    (COMPLETIONS, completion(prompt=["a"] * 1025), "prompt"),
    (COMPLETIONS, completion(max_tokens="16"), "max_tokens"),
    (COMPLETIONS, completion(max_tokens=0), "max_tokens"),
    (COMPLETIONS, completion(n=0), "n"),
    (COMPLETIONS, completion(n=129), "n"),
    (COMPLETIONS, completion(n=True), "n"),
    (COMPLETIONS, completion(temperature=2.1), "temperature"),
    (COMPLETIONS, completion(temperature=-0.1), "temperature"),
    (COMPLETIONS, completion(top_p=0), "top_p"),
    (COMPLETIONS, completion(top_k=-2), "top_k"),
    (COMPLETIONS, completion(min_p=1.5), "min_p"),
    (COMPLETIONS, completion(priority=2**31), "priority"),
    (COMPLETIONS, completion(prompt_cache_key="x" * 1025), "prompt_cache_key"),
    (COMPLETIONS, completion(presence_penalty=3), "presence_penalty"),
    (COMPLETIONS, completion(repetition_penalty=0), "repetition_penalty"),
    (COMPLETIONS, completion(stop=[""]), "stop"),
    (COMPLETIONS, completion(stop=["a"] * 33), "stop"),
    (COMPLETIONS, completion(stop=7), "stop"),
    (COMPLETIONS, completion(stop_token_ids=[-1]), "stop_token_ids"),
    (COMPLETIONS, completion(seed=2**63), "seed"),
    (COMPLETIONS, completion(seed=1.5), "seed"),
    (COMPLETIONS, completion(logprobs=21), "logprobs"),
    (COMPLETIONS, completion(logprobs=True), "logprobs"),
    (COMPLETIONS, completion(logit_bias={"x": 1}), "logit_bias"),
    (COMPLETIONS, completion(logit_bias={"99999": 1}), "logit_bias"),
    (COMPLETIONS, completion(min_tokens=17), "min_tokens"),
    (COMPLETIONS, completion(allowed_token_ids=[]), "allowed_token_ids"),
    (COMPLETIONS, completion(cache_salt=""), "cache_salt"),
    (COMPLETIONS, completion(request_id="a\nb"), "request_id"),
    (COMPLETIONS, completion(stream_options={"include_usage": True}), "stream_options"),
    (COMPLETIONS, completion(echo=True, logprobs=21), "logprobs"),
    (COMPLETIONS, completion(echo=True, max_tokens=-1), "max_tokens"),
    (COMPLETIONS, completion(best_of=3), "best_of"),
    (COMPLETIONS, completion(suffix="end"), "suffix"),
    (COMPLETIONS, completion(prompt_logprobs=21), "prompt_logprobs"),
    (COMPLETIONS, completion(prompt_logprobs=-1), "prompt_logprobs"),
    (COMPLETIONS, completion(prompt_logprobs=-1, echo=True, logprobs=2), "prompt_logprobs"),
    (COMPLETIONS, completion(prompt_logprobs=1, stream=True), "prompt_logprobs"),
    (COMPLETIONS, completion(prompt_logprobs=True), "prompt_logprobs"),
    (COMPLETIONS, completion(bad_words=[""]), "bad_words"),
    (COMPLETIONS, completion(bad_words=["a"] * 129), "bad_words"),
    (COMPLETIONS, completion(bad_words="a"), "bad_words"),
    (COMPLETIONS, completion(truncate_prompt_tokens=0), "truncate_prompt_tokens"),
    (COMPLETIONS, completion(truncate_prompt_tokens=-2), "truncate_prompt_tokens"),
    (COMPLETIONS, completion(truncation_side="middle"), "truncation_side"),
    (COMPLETIONS, completion(return_token_ids=1), "return_token_ids"),
    (COMPLETIONS, completion(logprob_token_ids=[1]), "logprob_token_ids"),
    (COMPLETIONS, completion(structured_outputs={"regex": "a"}), "structured_outputs"),
    (CHAT, {"model": "tiny"}, "messages"),
    (CHAT, chat(messages=[]), "messages"),
    (CHAT, chat(messages=[{"content": "hi"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "user", "content": 3}]), "messages[0].content"),
    (
        CHAT,
        chat(messages=[*USER, {"role": "user", "content": [{"type": "image_url"}]}]),
        "messages[1].content",
    ),
    (CHAT, chat(prompt_logprobs=-1), "prompt_logprobs"),
    (CHAT, chat(prompt_logprobs=3, stream=True), "prompt_logprobs"),
    (CHAT, chat(bad_words=["a", ""]), "bad_words"),
    (CHAT, chat(truncate_prompt_tokens=0), "truncate_prompt_tokens"),
    (CHAT, chat(max_tokens=0), "max_tokens"),
    (CHAT, chat(top_logprobs=2), "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tools"),
    (CHAT, chat(tool_choice="required"), "tool_choice"),
    (CHAT, chat(response_format={"type": "json_object"}), "response_format"),
    (CHAT, chat(chat_template="{{ 1 }}"), "chat_template"),
    (CHAT, chat(add_generation_prompt=True, continue_final_message=True), "continue_final_message"),
]


@pytest.mark.parametrize(("route", "body", "param"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
async def test_a_bad_field_is_named(
    direct: Any, router: Any, route: str, body: dict[str, Any], param: str
) -> None:
    response = await (await direct()).post(route, json=body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == param
    assert router.requests == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b'{"prompt": "\\ud800"}'])
async def test_a_body_that_is_no_json_object_is_refused(http: httpx2.AsyncClient, body: bytes) -> None:
    for route in (COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
        response = await http.post(route, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] is None


@pytest.mark.parametrize(
    "idle",
    [
        {"tools": None, "tool_choice": "auto", "response_format": {"type": "text"}},
        {"n": None, "temperature": None, "stop": None, "stream": None, "user": "me", "metadata": {"a": "b"}},
        {"never_heard_of": [1, 2]},
    ],
)
async def test_fields_that_ask_for_nothing_pass(http: httpx2.AsyncClient, idle: dict[str, Any]) -> None:
    assert (await http.post(CHAT, json=chat(**idle))).status_code == 200


async def test_nan_is_no_temperature(http: httpx2.AsyncClient) -> None:
    response = await http.post(COMPLETIONS, content=b'{"prompt": "a", "temperature": NaN}')
    assert response.json()["error"]["param"] == "temperature"


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="other", prompt="a")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": "a", "max_tokens": 256}, "max_tokens"), ({"prompt": "a b " * 200}, "prompt")],
)
async def test_what_does_not_fit_the_context_is_refused(
    http: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    error = (await http.post(COMPLETIONS, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)


async def test_a_body_over_the_limit_is_refused(serve: Any) -> None:
    async with httpx2.AsyncClient(base_url=await serve(max_body_bytes=1000), verify=False) as http:
        announced = await http.post(COMPLETIONS, content=b"x" * 1001)

        async def chunks() -> Any:
            for _ in range(11):
                yield b"x" * 100

        counted = await http.post(COMPLETIONS, content=chunks())
        assert [response.status_code for response in (announced, counted)] == [413, 413]
        assert counted.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.Overloaded("full", retry_after_s=2.5), 429, "overloaded"),
        (errors.NoReplica("none"), 503, "no_replica"),
        (errors.Draining("draining"), 503, "draining"),
        (errors.DeadlineExceeded("late"), 408, "timeout"),
        (errors.ReplicaLost("lost"), 503, "replica_lost"),
        (RuntimeError("a secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_router_says_becomes_a_status(
    http: httpx2.AsyncClient, router: Any, error: Exception, status: int, code: str, stream: bool
) -> None:
    for where in ("refuses", "fails"):
        router.script.refuses = router.script.fails = None
        setattr(router.script, where, error)
        response = await http.post(COMPLETIONS, json=completion(stream=stream))
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert "secret" not in response.text
        assert ("retry-after" in response.headers) == (status in (429, 503))
    assert router.num_open == 0


async def test_an_error_inside_a_stream_is_its_last_event(http: httpx2.AsyncClient, router: Any) -> None:
    router.script.fails, router.script.fails_at = errors.ReplicaLost("it died"), 2
    response = await http.post(COMPLETIONS, json=completion(stream=True))
    *_, error, done, end = response.text.split("\n\n")
    assert response.status_code == 200
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert (done, end) == ("data: [DONE]", "")


async def test_the_client_raises_for_an_error_inside_a_stream(
    client: openai.AsyncOpenAI, router: Any
) -> None:
    router.script.fails, router.script.fails_at = errors.ReplicaLost("it died"), 2
    with pytest.raises(openai.APIError, match="it died"):
        [chunk async for chunk in await client.completions.create(model="tiny", prompt="a", stream=True)]


async def test_one_of_several_prompts_that_fails_ends_all(http: httpx2.AsyncClient, router: Any) -> None:
    router.script.fails = errors.ReplicaLost("it died")
    assert (await http.post(COMPLETIONS, json=completion(prompt=["a", "b"]))).status_code == 503
    assert router.num_open == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", COMPLETIONS, 405), ("POST", "/metrics", 405)],
)
async def test_unknown_routes_and_methods_answer_in_the_same_shape(
    http: httpx2.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_model_without_a_template_cannot_chat(
    http: httpx2.AsyncClient, catalog: Any, router: Any, prefix_space_tokenizer: Any
) -> None:
    catalog.add(ServedModel("plain", "plain", "plain-1"), router, prefix_space_tokenizer)
    response = await http.post(CHAT, json={**chat(), "model": "plain"})
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]


async def test_a_request_is_taken_before_any_replica_has_told_its_context(
    http: httpx2.AsyncClient, router: Any
) -> None:
    router.max_model_len = None
    assert (await http.post(COMPLETIONS, json=completion())).status_code == 200
