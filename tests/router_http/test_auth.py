"""API keys: which routes need one, what it isolates, where a server without any may listen."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from protocol.block_hash import isolation_key
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from router.http.api_config import ApiConfig
from router.http.auth import check_bind

SECRETS = DeploymentSecrets(b"h" * 24, b"k" * 32, b"s" * 32)
BODY = {"prompt": "a"}


@pytest.fixture
async def locked(direct: Any, router: Any, tokenizer: Any) -> httpx2.AsyncClient:
    router.says(tokenizer, "hello")
    client: httpx2.AsyncClient = await direct(api_keys=("one", "two"), secrets=SECRETS)
    return client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/status", "/load", "/version", "/ping", "/openapi.json"]
)
async def test_every_route_needs_a_key(locked: httpx2.AsyncClient, path: str) -> None:
    refused = await locked.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await locked.get(path, headers=bearer("two"))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/reset_prefix_cache"]
)
async def test_posts_need_a_key_too(locked: httpx2.AsyncClient, path: str) -> None:
    assert (await locked.post(path, json=BODY)).status_code == 401


@pytest.mark.parametrize("path", ["/nowhere", "//health", "/health/", "/health/x"])
async def test_there_is_no_way_around_by_spelling(locked: httpx2.AsyncClient, path: str) -> None:
    assert (await locked.get(path)).status_code == 401


@pytest.mark.parametrize("header", ["Bearer three", "Bearer", "one", "Basic one", "Bearer \xe9"])
async def test_a_wrong_key_is_refused(locked: httpx2.AsyncClient, header: str) -> None:
    response = await locked.get("/v1/models", headers={"Authorization": header.encode("latin-1")})
    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/liveness", "/readiness", "/health"])
async def test_probes_need_none_and_say_nothing(locked: httpx2.AsyncClient, path: str) -> None:
    response = await locked.get(path)
    assert (response.status_code, response.content) == (200, b"")


async def test_tenants_do_not_share_a_cache(locked: httpx2.AsyncClient, router: Any) -> None:
    for key, salt in (("one", None), ("one", None), ("two", None), ("one", "x"), ("two", "x")):
        await locked.post("/v1/completions", json={**BODY, "cache_salt": salt}, headers=bearer(key))
    first, again, other, narrowed, other_narrowed = (request.isolation for request in router.requests)
    assert first == again
    assert len({first, other, narrowed, other_narrowed}) == 4


async def test_a_client_cannot_forge_the_salt_of_a_tenant(locked: httpx2.AsyncClient, router: Any) -> None:
    forged = SECRETS.tenant_salt("one")
    await locked.post("/v1/completions", json={**BODY, "cache_salt": forged}, headers=bearer("two"))
    assert router.requests[0].isolation != isolation_key(None, forged)


async def test_without_keys_the_clients_salt_alone_isolates(
    http: httpx2.AsyncClient, router: Any, tokenizer: Any
) -> None:
    router.says(tokenizer, "hello")
    for salt in (None, "x"):
        await http.post("/v1/completions", json={**BODY, "cache_salt": salt})
    assert [request.isolation for request in router.requests] == [b"", isolation_key(None, "x")]


def test_without_a_key_only_loopback_is_bound() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_bind(host, ())
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        check_bind(host, ("key",))
        with pytest.raises(InvalidRequest, match="without an API key"):
            check_bind(host, ())


def test_keys_without_secrets_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        ApiConfig(api_keys=("one",))


def test_keys_are_not_shown_in_a_log() -> None:
    assert "sesame" not in repr(ApiConfig(api_keys=("sesame",), secrets=SECRETS))
