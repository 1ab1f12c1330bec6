"""The bytes of a stream, exactly."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest


@pytest.fixture(autouse=True)
def hello(router: Any, tokenizer: Any) -> None:
    router.says(tokenizer, "hi \n\n 你")


@pytest.mark.parametrize(
    ("route", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "a"}, "text_completion"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "chat.completion.chunk"),
    ],
)
async def test_a_stream_is_one_json_an_event_and_done(
    http: httpx2.AsyncClient, route: str, body: dict[str, Any], kind: str
) -> None:
    response = await http.post(route, json={**body, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *lines, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    for line in lines:
        assert line.startswith("data: {")
        assert "\n" not in line
        assert json.loads(line.removeprefix("data: "))["object"] == kind
    assert "你" in response.text  # as it is, not escaped


async def test_headers_come_with_the_stream(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert response.headers["x-trunkline-replica"] == "replica-1"
    assert response.headers["x-request-id"]


async def test_only_the_last_chunk_of_a_choice_has_a_reason(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": True, "n": 3})
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-2]]
    for index in range(3):
        reasons = [e["choices"][0]["finish_reason"] for e in events if e["choices"][0]["index"] == index]
        assert reasons[-1] == "stop"
        assert set(reasons[:-1]) <= {None}
