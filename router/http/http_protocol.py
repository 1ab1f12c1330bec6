"""uvicorn's HTTP/1.1, but the head of a response leaves together with what follows it. Used by `http_server.py`.

uvicorn writes the head by itself: one more packet, and one more time that the client is woken for nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "


class HttpProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_HeadHolder(transport, self.loop))  # type: ignore[arg-type]


class _HeadHolder:
    """The connection's transport, which keeps a head until the next write, at most until the loop's next turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if data.startswith(_HEAD):
            self._flush()
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            held, self._held = self._held, b""
            self._transport.write(held + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
