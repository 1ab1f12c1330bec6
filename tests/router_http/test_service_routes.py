"""Routes that generate nothing: models, probes, status, metrics, tokens, the cache's reset."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.requests.routed_request import Decision, Reason


async def test_the_model_is_listed(client: openai.AsyncOpenAI) -> None:
    (model,) = (await client.models.list()).data
    assert (model.id, model.object, model.max_model_len) == ("tiny", "model", 256)  # type: ignore[attr-defined]
    assert (await client.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


@pytest.mark.parametrize(
    ("ready", "draining", "code"), [(False, False, "no_replica"), (False, True, "draining")]
)
async def test_nothing_is_listed_when_nothing_can_serve(
    http: httpx2.AsyncClient, router: Any, catalog: Any, ready: bool, draining: bool, code: str
) -> None:
    router.ready = ready
    if draining:
        catalog.drain()
    response = await http.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (503, code)


async def test_probes_tell_life_from_readiness(http: httpx2.AsyncClient, router: Any) -> None:
    router.ready = False
    statuses = [(await http.get(path)).status_code for path in ("/liveness", "/readiness", "/health")]
    assert statuses == [200, 503, 503]
    assert (await http.get("/health")).content == b""


async def test_status_shows_every_replica(http: httpx2.AsyncClient) -> None:
    status = (await http.get("/status")).json()
    assert (status["models"][0]["name"], status["draining"]) == ("tiny", False)
    (replica,) = status["replicas"]
    assert (replica["id"], replica["state"], replica["incarnation"]) == ("replica-1", "ready", 3)
    assert replica["workers"] == [{"rank": 0, "pid": 4711, "node": "node-a", "devices": []}]
    assert replica["index"] == "SYNCED"


async def test_a_reset_says_how_many_blocks_are_in_the_way(http: httpx2.AsyncClient, router: Any) -> None:
    done = await http.post("/reset_prefix_cache")
    router.blocks_in_use = 7
    refused = await http.post("/reset_prefix_cache")
    assert (done.status_code, done.json()) == (200, {"reset": True, "blocks_in_use": 0})
    assert (refused.status_code, refused.json()) == (409, {"reset": False, "blocks_in_use": 7})


async def test_text_is_tokenized_and_back(http: httpx2.AsyncClient, tokenizer: Any) -> None:
    body = {"prompt": "the fox 你", "return_token_strs": True}
    answer = (await http.post("/tokenize", json=body)).json()
    assert answer["tokens"] == tokenizer.encode("the fox 你")
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 256)
    assert len(answer["token_strs"]) == answer["count"]
    back = await http.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "the fox 你"}


async def test_long_text_is_tokenized_all_the_same(http: httpx2.AsyncClient, tokenizer: Any) -> None:
    text = "the quick brown fox " * 1000
    answer = (await http.post("/tokenize", json={"prompt": text})).json()
    assert answer["tokens"] == tokenizer.encode(text)


async def test_messages_are_tokenized_through_the_template(http: httpx2.AsyncClient, tokenizer: Any) -> None:
    answer = await http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})
    assert answer.json()["tokens"] == tokenizer.encode("<|user|>hi<|end|><|assistant|>")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": []}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "a"}),
    ],
)
async def test_bad_token_requests_are_refused(
    http: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    assert (await http.post(path, json=body)).status_code == 400


async def test_small_routes_answer(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/version")).json() == {"version": "0"}
    assert (await http.get("/load")).json() == {"server_load": 1}
    assert (await http.get("/ping")).status_code == 200


async def test_the_schema_describes_the_bodies(http: httpx2.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    schema = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "prompt" in schema["required"]


async def samples(http: httpx2.AsyncClient) -> dict[tuple[str, str], float]:
    """By name and the label that tells it apart from its like."""
    page = (await http.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "model_name"}
            found[sample.name, ",".join(labels.values())] = sample.value
    return found


async def test_metrics_count_what_requests_experience(
    http: httpx2.AsyncClient, router: Any, tokenizer: Any
) -> None:
    router.says(tokenizer, "hello", cached=2)
    await http.post("/v1/completions", json={"prompt": "the fox", "n": 2})
    found = await samples(http)
    num_tokens = len(router.script.token_ids)
    assert found["trunkline_time_to_first_token_seconds_count", ""] == 1
    assert found["trunkline_e2e_request_latency_seconds_count", ""] == 1
    assert found["trunkline_inter_token_latency_seconds_count", ""] == 2 * (num_tokens - 1)
    assert found["trunkline_generation_tokens_total", ""] == 2 * num_tokens
    assert found["trunkline_prompt_tokens_total", ""] == len(tokenizer.encode("the fox"))
    assert found["trunkline_prefix_cache_hits_total", ""] == 2
    assert found["trunkline_request_success_total", "stop"] == 2
    assert found["trunkline_requests_in_flight", ""] == 0


async def test_metrics_show_the_router_and_its_replicas(http: httpx2.AsyncClient, router: Any) -> None:
    router.counters.compare(100, Decision("replica-1", 48, 1.0, Reason.PREFIX, 64), 32)
    router.counters.decisions[Reason.PREFIX] = 3
    found = await samples(http)
    assert found["trunkline_router_index_bytes", ""] == 0
    assert found["trunkline_route_prompt_tokens_total", ""] == 100
    assert found["trunkline_route_predicted_cached_tokens_total", ""] == 48
    assert found["trunkline_route_actual_cached_tokens_total", ""] == 32
    assert found["trunkline_route_best_available_cached_tokens_total", ""] == 64
    assert found["trunkline_route_regret_tokens_total", ""] == 32
    assert found["trunkline_route_mispredicted_tokens_total", ""] == 16
    assert found["trunkline_route_decisions_total", "prefix"] == 3
    assert found["trunkline_num_requests_running", "replica-1"] == 1
    assert found["trunkline_kv_cache_usage_perc", "replica-1"] == 0.4
    assert found["trunkline_kv_blocks_used", "replica-1"] == 40
    assert found["trunkline_kv_blocks_cached_free", "replica-1"] == 30
    assert found["trunkline_index_synced", "replica-1"] == 1
    assert found["trunkline_num_preemptions_total", "replica-1"] == 5
    assert found["trunkline_prefix_cache_hit_tokens_total", "replica-1,gpu"] == 64
    assert found["trunkline_prefix_cache_miss_tokens_total", "replica-1,evicted"] == 32
    assert found["trunkline_prefix_cache_miss_tokens_total", "replica-1,absent"] == 0
