"""What comes with an API key: its tenant, weight and priority class."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from router.http.api_config import ApiConfig
from router.http.api_keys import ApiKey, Tenant, parse_keys
from router.http.auth import check_bind

SECRETS = DeploymentSecrets(b"h" * 24, b"k" * 32, b"s" * 32)
KEYS = ("plain", "gold weight=4 priority=-2", "batch priority=5")


def test_a_key_alone_weighs_one_and_is_of_class_zero() -> None:
    assert ApiKey.parse(" secret ") == ApiKey("secret", 1.0, 0)


def test_weight_and_priority_stand_behind_it_in_any_order() -> None:
    assert ApiKey.parse("secret priority=-3  weight=2.5") == ApiKey("secret", 2.5, -3)


def test_of_a_key_given_twice_the_last_entry_counts() -> None:
    assert parse_keys(("one", "two", "one weight=3")) == [ApiKey("one", 3.0), ApiKey("two")]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("", "non-empty ASCII"),
        ("schlüssel", "non-empty ASCII"),
        ("secret gold", "only weight=NUMBER and priority=INTEGER"),
        ("secret wait=2", "only weight=NUMBER"),
        ("secret weight=", "must be a number from 0.001 to 1000"),
        ("secret weight=0", "must be a number"),
        ("secret weight=nan", "must be a number"),
        ("secret weight=1e9", "must be a number"),
        ("secret priority=high", "integer of 32 bits"),
        ("secret priority=2147483648", "integer of 32 bits"),
    ],
)
def test_a_wrong_entry_is_refused_and_the_key_not_shown(entry: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as raised:
        ApiConfig(api_keys=(entry,), secrets=SECRETS)
    assert "secret" not in raised.value.message


def test_a_wrong_entry_is_found_before_anything_is_launched() -> None:
    with pytest.raises(InvalidRequest, match="only weight=NUMBER"):
        check_bind("127.0.0.1", ("secret gold",))


def test_a_keys_repr_does_not_show_it() -> None:
    assert "secret" not in repr(ApiKey.parse("secret weight=2"))


@pytest.mark.parametrize(
    ("earliest", "asked", "given"),
    [
        (None, None, 0),
        (None, -7, -7),
        (0, None, 0),
        (0, -7, 0),
        (0, 3, 3),
        (5, None, 5),
        (5, 0, 5),
        (-2, None, -2),
    ],
)
def test_nobody_gets_before_others_by_asking(earliest: int | None, asked: int | None, given: int) -> None:
    assert Tenant(earliest=earliest).priority(asked) == given


@pytest.fixture
async def keyed(direct: Any, router: Any, tokenizer: Any) -> httpx2.AsyncClient:
    for _ in range(3):
        router.says(tokenizer, "hello")
    client: httpx2.AsyncClient = await direct(api_keys=KEYS, secrets=SECRETS)
    return client


async def ask(client: httpx2.AsyncClient, key: str, **more: Any) -> None:
    header = {"Authorization": f"Bearer {key}"}
    response = await client.post("/v1/completions", json={"prompt": "a", **more}, headers=header)
    assert response.status_code == 200, response.text


async def test_a_request_goes_to_the_router_with_what_its_key_has(
    keyed: httpx2.AsyncClient, router: Any
) -> None:
    await ask(keyed, "gold", priority=-9)
    asked = router.requests[-1]
    assert (asked.weight, asked.priority, asked.tenant) == (4.0, -2, SECRETS.tenant_id("gold"))


async def test_tenants_are_told_apart_and_neither_key_nor_salt_is_told(
    keyed: httpx2.AsyncClient, router: Any
) -> None:
    for key in ("plain", "batch", "plain"):
        await ask(keyed, key)
    first, other, again = (request.tenant for request in router.requests[-3:])
    assert first == again != other
    assert len(first) == 16 and first.hex() != SECRETS.tenant_salt("plain")


async def test_without_keys_all_are_one_tenant(direct: Any, router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hello")
    client = await direct()
    assert (await client.post("/v1/completions", json={"prompt": "a", "priority": -4})).status_code == 200
    assert (router.requests[-1].tenant, router.requests[-1].priority) == (b"", -4)


@pytest.mark.parametrize("priority", [2**31, -(2**31) - 1, 1.5, "first"])
async def test_a_priority_that_is_none_is_refused(direct: Any, priority: Any) -> None:
    response = await (await direct()).post("/v1/completions", json={"prompt": "a", "priority": priority})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")


async def test_the_queue_and_refusals_are_on_the_metrics_page(direct: Any, router: Any) -> None:
    page = (await (await direct()).get("/metrics")).text
    for name in ("router_queued_tokens", "router_max_queued_tokens"):
        assert f"trunkline_{name}{{" in page
    for reason in ("queued_tokens", "live_requests", "waiting_requests"):
        assert f'reason="{reason}"}} 0.0' in page
