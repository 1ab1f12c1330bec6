"""What a request and a streamed token cost at the endpoint: counted in calls and writes, since seconds are not to be
trusted here."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
from types import FrameType
from typing import Any

import httpx2
import pytest
import uvicorn
from uvicorn.server import ServerState

from router import collection
from router.http.api import create_app
from router.http.api_config import ApiConfig
from router.http.direct_routes import DirectRoutes
from router.http.http_protocol import HttpProtocol
from router.http.http_server import HttpServer
from router.text.tokenizer import Tokenizer

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
CALLS_PER_TOKEN = 100  # Python's and C's, the fake replica and the event loop included
CALLS_PER_REQUEST = 850


async def post(app: Any, path: str, body: dict[str, Any]) -> list[bytes]:
    """The bodies of the messages that the app sends for one request."""
    sent: list[bytes] = []
    asked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if asked.is_set():
            await asyncio.Event().wait()
        asked.set()
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return sent


def chat(**options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True, **options}


@pytest.fixture
def app(router: Any, tokenizer: Tokenizer, catalog: Any) -> Any:
    """Of a replica that says `h` for as long as it is asked to."""
    router.says(tokenizer, "h" * 200)
    return create_app(catalog, ApiConfig())


async def count_calls(app: Any, body: dict[str, Any]) -> int:
    """Of a second request like this: the first one fills caches."""
    await post(app, CHAT, body)
    calls = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        await post(app, CHAT, body)
    finally:
        sys.setprofile(before)
    return calls


async def test_a_streamed_token_takes_a_bounded_number_of_calls(app: Any) -> None:
    few, many = [await count_calls(app, chat(stream=True, max_tokens=number)) for number in (20, 120)]
    assert 0 < (many - few) / 100 <= CALLS_PER_TOKEN, f"{(many - few) / 100:.1f} calls a token"


async def test_a_whole_answer_takes_a_bounded_number_of_calls(app: Any) -> None:
    calls = await count_calls(app, chat(max_tokens=1))
    assert 0 < calls <= CALLS_PER_REQUEST, f"{calls} calls a request"


async def test_earlier_turns_of_a_chat_are_not_tokenized_again(app: Any, tokenizer: Tokenizer) -> None:
    turns = [{"role": "user", "content": f"turn {number} " + "x" * 10} for number in range(3)]
    await post(app, CHAT, {"messages": turns, "max_tokens": 1})
    text = tokenizer.apply_chat_template([*turns, {"role": "user", "content": "new"}])
    assert tokenizer.part_encoder.look_up(text).num_unknown_characters == len("<|user|>new")


async def test_tokens_that_came_together_leave_in_one_write(app: Any, router: Any) -> None:
    router.script.together = 4
    sent = await post(app, CHAT, chat(stream=True, max_tokens=12))
    assert [body.count(b'"content":"h"') for body in sent] == [4, 4, 4]


async def test_the_last_token_and_the_end_of_the_stream_leave_in_one_write(app: Any) -> None:
    options = {"include_usage": True}
    sent = await post(app, CHAT, chat(stream=True, max_tokens=3, stream_options=options))
    assert len(sent) == 3
    assert sent[-1].count(b'"content":"h"') == 1
    assert sent[-1].endswith(b"data: [DONE]\n\n") and b'"usage"' in sent[-1]


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, chat()), (COMPLETION, {"prompt": "a"})])
async def test_chunks_that_only_bring_text_are_as_if_encoded_whole(
    router: Any, tokenizer: Tokenizer, catalog: Any, path: str, prompt: dict[str, Any]
) -> None:
    """With token ids asked for, every chunk is: without them the same chunks come."""
    router.says(tokenizer, 'say "hi" \\ \n 你好')
    app = create_app(catalog, ApiConfig())
    body = {**prompt, "stream": True, "n": 2, "request_id": "one", "max_tokens": 40}
    plain, full = [await post(app, path, {**body, "return_token_ids": ids}) for ids in (False, True)]
    ids = ("token_ids", "prompt_token_ids", "created")
    shown = [[_without(ids, line) for line in b"".join(each).split(b"\n\n")[:-2]] for each in (plain, full)]
    assert shown[0] == [chunk for chunk in shown[1] if chunk["choices"][0] not in _empty(path)]


def _without(names: tuple[str, ...], event: bytes) -> dict[str, Any]:
    chunk = json.loads(event.removeprefix(b"data: "))
    for each in (chunk, *chunk["choices"]):
        for name in names:
            each.pop(name, None)
    return dict(chunk)


def _empty(path: str) -> list[dict[str, Any]]:
    """Chunks that had nothing but token ids: half a character's."""
    said = {"delta": {}} if path == CHAT else {"text": ""}
    rest = {"logprobs": None, "finish_reason": None, "stop_reason": None}
    return [{"index": index, **said, **rest} for index in (0, 1)]


async def test_requests_that_generate_do_not_pass_what_lies_around_other_routes() -> None:
    async def rest(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(f"{scope['method']} {scope['path']} came this way")

    async def endpoint(request: Any) -> Any:
        return answer

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"here"})

    class Anyone:
        def check(self, authorization: str | None) -> None: ...

    app = DirectRoutes({CHAT: endpoint}, Anyone(), rest)  # type: ignore[arg-type, dict-item]
    assert await post(app, CHAT, {}) == [b"here"]
    with pytest.raises(AssertionError, match="POST /tokenize came this way"):
        await post(app, "/tokenize", {})


class RecordingTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.writes.append(b"closed")


async def exchange(app: Any, request: bytes, until: int) -> list[bytes]:
    """What is written to a connection that says `request`, up to that many writes."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", http=HttpProtocol)
    config.load()
    transport, state = RecordingTransport(), ServerState()
    protocol = HttpProtocol(config, state, {})
    protocol.connection_made(transport)
    protocol.data_received(request)
    async with asyncio.timeout(30):
        while len(transport.writes) < until:
            await asyncio.sleep(0)
    writes = list(transport.writes)
    for task in state.tasks:
        task.cancel()
    await asyncio.gather(*state.tasks, return_exceptions=True)
    protocol.connection_lost(None)
    return writes


async def test_head_and_body_of_an_answer_leave_in_one_write(app: Any) -> None:
    body = json.dumps(chat(max_tokens=2)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    (write,) = await exchange(app, head + body, until=1)
    assert write.startswith(b"HTTP/1.1 200 OK\r\n") and write.endswith(b"}")


async def test_a_head_that_nothing_follows_leaves_all_the_same() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    (write,) = await exchange(app, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", until=1)
    assert write.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_head_leaves_before_its_connection_closes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise OSError("no body can be had")

    writes = await exchange(app, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", until=2)
    assert writes[0].startswith(b"HTTP/1.1 200") and writes[1:] == [b"closed"]


async def test_a_reused_connection_sends_small_packets_at_once(app: Any) -> None:
    async with HttpServer(app, "127.0.0.1", 0) as server, httpx2.AsyncClient(verify=False) as client:
        for _ in range(2):
            await client.post(f"http://127.0.0.1:{server.port}{CHAT}", json=chat(max_tokens=1))
        (connection,) = server._server.server_state.connections
        sock = connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_settled_process_is_not_looked_through_again() -> None:
    before = gc.get_threshold()
    try:
        collection.settle()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] == collection.YOUNG_OBJECTS
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
