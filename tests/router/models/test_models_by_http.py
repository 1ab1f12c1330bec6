"""Several models behind one endpoint, from the body's `model` to the replica that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from router.http.api import create_app
from router.http.api_config import ApiConfig

Make = Callable[..., Awaitable[Any]]
COMPLETIONS = "/v1/completions"


@pytest.fixture
async def http(stage: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(create_app(stage.catalog, ApiConfig()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://app", verify=False) as client:
        yield client


async def test_each_model_answers_by_its_name(
    stage: Any, model: Any, http: httpx2.AsyncClient, eventually: Make
) -> None:
    one, two = model("one"), model("two")
    replicas = [await stage.replica(one, "a"), await stage.replica(two, "b")]
    await stage.follow(one, two, replicas=replicas)
    for name, replica in (("one", "a"), ("two", "b"), ("one", "a")):
        answer = await http.post(COMPLETIONS, json={"model": name, "prompt": "hello", "max_tokens": 2})
        assert (answer.json()["model"], answer.headers["x-trunkline-replica"]) == (name, replica)
    assert [len(replica.submits) for replica in replicas] == [2, 1]


async def test_the_first_request_ever_waits_for_the_replica_that_it_makes_start(
    stage: Any, model: Any, http: httpx2.AsyncClient, eventually: Make
) -> None:
    served = model(scales_to_zero=True)
    await stage.follow(served)
    assert (await http.get("/readiness")).status_code == 200
    answer = asyncio.create_task(http.post(COMPLETIONS, json={"prompt": "hello", "max_tokens": 2}))
    await eventually(lambda: [demand.num_waiting for demand in stage.models.demand()] == [1])
    await stage.follow(served, replicas=[await stage.replica(served, "a")])
    assert (await answer).headers["x-trunkline-replica"] == "a"


async def test_without_a_replica_only_what_scales_to_zero_makes_it_ready(
    stage: Any, model: Any, http: httpx2.AsyncClient
) -> None:
    await stage.follow(model("one"))
    assert (await http.get("/readiness")).status_code == 503
    await stage.follow(model("one"), model("two", scales_to_zero=True))
    assert (await http.get("/readiness")).status_code == 200


async def test_a_request_stays_with_the_version_that_it_began_with(
    stage: Any, model: Any, http: httpx2.AsyncClient, eventually: Make
) -> None:
    old, new = model("m", "m-1", current=False), model("m", "m-2")
    first = await stage.replica(old, "a", automatic=False)
    await stage.follow(old, replicas=[first])
    answer = asyncio.create_task(http.post(COMPLETIONS, json={"prompt": "hello", "max_tokens": 2}))
    await eventually(lambda: len(first.submits) == 1)
    second, third = await stage.replica(new, "b"), await stage.replica(old, "c")
    await stage.follow(old, new, replicas=[second, third])  # its replica is lost; both have room for it
    assert (await answer).status_code == 200
    assert (len(second.submits), len(third.submits)) == (0, 1)
