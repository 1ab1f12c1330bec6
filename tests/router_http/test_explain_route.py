"""`/admin/route/explain`: the table of costs for a body that is not run, behind the key like everything else."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from protocol.block_hash import isolation_key
from protocol.deployment_secrets import DeploymentSecrets
from protocol.tokens import unpack_tokens

PATH = "/admin/route/explain"


async def test_a_completion_is_explained_and_not_run(
    http: httpx2.AsyncClient, router: Any, tokenizer: Any
) -> None:
    answer = await http.post(PATH, json={"prompt": "the fox"})
    (explained,) = answer.json()["prompts"]
    assert (answer.status_code, explained["replica"], explained["reason"]) == (200, "replica-1", "prefix")
    assert (explained["prompt_tokens"], explained["price_of_a_copy"]) == (20, 1.5)
    assert list(unpack_tokens(router.explained[0].token_ids)) == tokenizer.encode("the fox")
    assert router.requests == []


async def test_every_replica_is_shown_with_its_terms_and_their_sum(http: httpx2.AsyncClient) -> None:
    first, second = (await http.post(PATH, json={"prompt": "a"})).json()["prompts"][0]["replicas"]
    assert first == {
        "replica": "replica-1",
        "matched_tokens": 16,
        "prefill_s": 0.5,
        "ahead_s": 0.25,
        "num_overtaken": 2,
        "overtaking_s": 1.0,
        "copy_s": 0.0,
        "decode_s": 0.125,
        "evict_s": 0.0,
        "cost_s": 1.875,
        "index": "SYNCED",
    }
    assert (second["replica"], second["index"]) == ("replica-2", "BLIND")


async def test_a_chat_goes_through_its_template(
    http: httpx2.AsyncClient, router: Any, tokenizer: Any
) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    assert (await http.post(PATH, json={"messages": messages})).status_code == 200
    text = tokenizer.apply_chat_template(messages, tools=None, add_generation_prompt=True)
    assert list(unpack_tokens(router.explained[0].token_ids)) == tokenizer.encode(text, False)


async def test_each_of_several_prompts_is_explained(http: httpx2.AsyncClient, router: Any) -> None:
    answer = await http.post(PATH, json={"prompt": ["a", "b", "c"]})
    assert len(answer.json()["prompts"]) == len(router.explained) == 3


async def test_what_would_be_refused_is_refused(http: httpx2.AsyncClient) -> None:
    for body in ({"prompt": ""}, {"prompt": "a", "model": "other"}, {"messages": []}, {"messages": 3}, {}):
        assert (await http.post(PATH, json=body)).status_code in (400, 404)
    for data in (b"no json", b"[]", b'{"prompt": "a"'):
        assert (await http.post(PATH, content=data)).status_code == 400


async def test_without_a_ready_replica_there_is_nothing_to_explain(
    http: httpx2.AsyncClient, router: Any
) -> None:
    router.ready = False
    answer = await http.post(PATH, json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")


@pytest.mark.parametrize("salt", [None, "mine"])
async def test_it_needs_a_key_and_sees_only_what_that_key_may_match(
    direct: Any, router: Any, salt: str | None
) -> None:
    secrets = DeploymentSecrets(b"h" * 24, b"k" * 32, b"s" * 32)
    client = await direct(api_keys=("one", "two"), secrets=secrets)
    assert (await client.post(PATH, json={"prompt": "a"})).status_code == 401
    body = {"prompt": "a", "cache_salt": salt, "prompt_cache_key": "session"}
    headers = {"Authorization": "Bearer one"}
    assert (await client.post(PATH, json=body, headers=headers)).status_code == 200
    tenant = secrets.tenant_salt("one")
    assert router.explained[0].isolation == isolation_key(None, f"{tenant}/{salt}" if salt else tenant)
    assert router.explained[0].affinity == "session"
