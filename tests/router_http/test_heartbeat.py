"""Streams whose first token is long in coming."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from protocol.errors import NoReplica

BODY = {"prompt": "a", "stream": True}
COMMENT = ": the first token is still to come\n\n"


@pytest.fixture
def waiting(router: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The first token comes once it is set; beats come often until then."""
    monkeypatch.setattr("router.http.heartbeat.FIRST_AFTER_S", 0.01)
    monkeypatch.setattr("router.http.heartbeat.EVERY_S", 0.01)
    router.says(tokenizer, "hi")
    router.script.gate = asyncio.Event()
    gate: asyncio.Event = router.script.gate
    return gate


async def test_comments_come_until_the_first_token_and_none_after(
    http: httpx2.AsyncClient, waiting: asyncio.Event
) -> None:
    async with http.stream("POST", "/v1/completions", json=BODY) as response:
        assert response.status_code == 200
        text = ""
        async for part in response.aiter_text():
            text += part
            if text.count(COMMENT) >= 2:
                waiting.set()
    comments, _, rest = text.rpartition(COMMENT)
    assert comments.replace(COMMENT, "") == ""
    assert rest.startswith('data: {"id"') and rest.endswith("data: [DONE]\n\n")


async def test_a_failure_after_the_first_beat_is_an_event(
    http: httpx2.AsyncClient, router: Any, waiting: asyncio.Event
) -> None:
    router.script.fails = NoReplica("no replica became ready in time")
    async with http.stream("POST", "/v1/completions", json=BODY) as response:
        parts = response.aiter_text()
        assert await anext(parts) == COMMENT
        waiting.set()
        rest = "".join([part async for part in parts]).replace(COMMENT, "")
    error, done, end = rest.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "no replica became ready in time"
    assert (done, end) == ("data: [DONE]", "")


async def test_a_failure_before_it_has_its_own_status(
    http: httpx2.AsyncClient, router: Any, tokenizer: Any
) -> None:
    router.says(tokenizer, "hi")
    router.script.fails = NoReplica("no replica became ready in time")
    assert (await http.post("/v1/completions", json=BODY)).status_code == 503


async def test_openais_client_reads_over_comments(client: openai.AsyncOpenAI, waiting: asyncio.Event) -> None:
    asyncio.get_running_loop().call_later(0.1, waiting.set)
    stream = await client.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "hi"
