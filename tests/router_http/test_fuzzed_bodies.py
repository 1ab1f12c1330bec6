"""Whatever a client sends is answered, and never with a fault of ours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http.openai_types import ChatBody, CompletionBody, TokenizeBody

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.integers()
    | st.floats(width=32)
    | st.text(max_size=5)
    | st.sampled_from(["a", "tiny", "user"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage", "1"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    sorted(
        {*CompletionBody.model_fields, *ChatBody.model_fields, *TokenizeBody.model_fields, "response_format"}
    )
)
ROUTES = st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
GOOD = {"prompt": "a", "messages": [{"role": "user", "content": "hi"}], "tokens": [5]}


def test_no_body_makes_the_server_fail(router: Any, tokenizer: Any, app: Any) -> None:
    router.says(tokenizer, "hello")

    async def status(route: str, body: Any) -> int:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://app", verify=False
        ) as client:
            return int((await client.post(route, content=json.dumps({**GOOD, **body}))).status_code)

    @settings(deadline=None, max_examples=150)
    @given(ROUTES, st.dictionaries(FIELDS, VALUES, max_size=3))
    def check(route: str, body: Any) -> None:
        assert asyncio.run(asyncio.wait_for(status(route, body), 20)) in (200, 400, 404)
        assert router.num_open == 0

    check()
