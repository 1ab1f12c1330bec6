"""An endpoint with two models: every route goes by the name."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from protocol.membership import ServedModel

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture
def second(catalog: Any, router: Any, prefix_space_tokenizer: Any) -> Any:
    """The core of the model `plain`, which has a tokenizer and a context of its own."""
    core = type(router)()
    core.max_model_len = 99
    core.says(prefix_space_tokenizer, "hello")
    catalog.add(ServedModel("plain", "a/plain", "plain-1"), core, prefix_space_tokenizer)
    return core


async def test_a_request_runs_with_the_model_that_it_names(
    http: httpx2.AsyncClient, router: Any, second: Any, tokenizer: Any
) -> None:
    router.says(tokenizer, "the fox")
    for name, core, text in (("tiny", router, "the fox"), ("plain", second, "hello")):
        answer = (await http.post(COMPLETIONS, json={"model": name, "prompt": "a"})).json()
        assert (answer["model"], answer["choices"][0]["text"].strip()) == (name, text)
        assert len(core.requests) == 1


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/admin/route/explain"])
@pytest.mark.parametrize("named", [{}, {"model": None}], ids=["missing", "null"])
async def test_without_a_name_it_cannot_tell_which(
    http: httpx2.AsyncClient, second: Any, path: str, named: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"prompt": "a"}
    answer = await http.post(path, json=body | named)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model")
    assert error["message"] == "several models are served here: set model to 'plain' or 'tiny'"


async def test_an_unknown_name_is_answered_with_the_names(http: httpx2.AsyncClient, second: Any) -> None:
    answer = await http.post(COMPLETIONS, json={"model": "other", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "'plain' or 'tiny'" in answer.json()["error"]["message"]


async def test_every_model_is_listed_with_its_own_context(http: httpx2.AsyncClient, second: Any) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    assert [(each["id"], each["root"], each["max_model_len"]) for each in listed] == [
        ("plain", "a/plain", 99),
        ("tiny", "a/tiny", 256),
    ]
    assert (await http.get("/v1/models/plain")).json()["max_model_len"] == 99


async def test_two_versions_of_a_name_are_listed_once(
    http: httpx2.AsyncClient, catalog: Any, router: Any, tokenizer: Any
) -> None:
    catalog.add(ServedModel("tiny", "a/tinier", "tiny-2", current=False), router, tokenizer)
    (listed,) = (await http.get("/v1/models")).json()["data"]
    assert (listed["id"], listed["root"]) == ("tiny", "a/tiny")


async def test_text_is_tokenized_as_the_named_model_does(
    http: httpx2.AsyncClient, second: Any, tokenizer: Any, prefix_space_tokenizer: Any
) -> None:
    for name, own in (("tiny", tokenizer), ("plain", prefix_space_tokenizer)):
        tokens = (await http.post("/tokenize", json={"model": name, "prompt": "hello"})).json()["tokens"]
        assert tokens == own.encode("hello")
        text = (await http.post("/detokenize", json={"model": name, "tokens": tokens})).json()["prompt"]
        assert text.strip().removeprefix("<s>").strip() == "hello"


async def test_a_route_is_explained_by_the_named_models_core(
    http: httpx2.AsyncClient, router: Any, second: Any
) -> None:
    await http.post("/admin/route/explain", json={"model": "plain", "prompt": "a"})
    assert (len(router.explained), len(second.explained)) == (0, 1)


async def test_a_reset_is_of_all_models_or_of_one(http: httpx2.AsyncClient, router: Any, second: Any) -> None:
    router.blocks_in_use, second.blocks_in_use = 3, 4
    paths = ("/reset_prefix_cache", "/reset_prefix_cache?model=plain", "/reset_prefix_cache?model=other")
    answers = [await http.post(path) for path in paths]
    assert [answer.json().get("blocks_in_use") for answer in answers] == [7, 4, None]
    assert [answer.status_code for answer in answers] == [409, 409, 404]


@pytest.mark.parametrize("field", ["prompt_cache_key", "user"])
async def test_a_session_keeps_to_one_of_two_versions(
    http: httpx2.AsyncClient, catalog: Any, router: Any, tokenizer: Any, field: str
) -> None:
    other = type(router)()
    catalog.add(ServedModel("tiny", "a/tinier", "tiny-2", current=False), other, tokenizer)
    for _ in range(12):
        await http.post(COMPLETIONS, json={"prompt": "a", field: "me"})
    assert sorted((len(router.requests), len(other.requests))) == [0, 12]
    for number in range(12):
        await http.post(COMPLETIONS, json={"prompt": "a", field: str(number)})
    assert min(len(router.requests), len(other.requests)) > 0
