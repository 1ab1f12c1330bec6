"""Reads a request's body within a limit, counting as it arrives: a client's Content-Length is only a promise."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from protocol.errors import BodyTooLarge


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Raises BodyTooLarge, and ClientDisconnect when the client leaves before its end."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body may have at most {limit_bytes} bytes")
