"""Server-sent events as OpenAI's clients read them: one JSON a line, and a last word."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

DONE = b"data: [DONE]\n\n"
COMMENT = b": the first token is still to come\n\n"  # says nothing to a client, and keeps proxies awake
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # proxies in front must not collect chunks
}
HOLE = "\0"  # no label, model name or number contains it
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_bytes(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def events(values: Iterable[Any]) -> bytes:
    """Several events in one write."""
    return b"".join(b"data: " + json_bytes(value) + b"\n\n" for value in values)


class EventShape:
    """Many events that differ in one text only: all else of them is encoded once. `value` has `HOLE` in its place."""

    def __init__(self, value: Any) -> None:
        self._before, hole, self._after = events([value]).partition(json_bytes(HOLE))
        assert hole, "an event's shape has a hole"

    def filled(self, text: str) -> bytes:
        return self._before + json_bytes(text) + self._after
