"""Length-prefixed frames: a big-endian u32, then that many bytes. Used on every socket of ours.

Knows nothing of messages. A frame over the limit, or a stream that ends inside one, ends the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from protocol.errors import ProtocolError

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


def frame(payload: bytes) -> bytes:
    """The payload with its length in front."""
    assert len(payload) <= MAX_FRAME_BYTES, f"a frame of {len(payload)} bytes exceeds the limit"
    return _LENGTH.pack(len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME_BYTES) -> bytes | None:
    """The next payload, or None when the peer closed between two frames. Raises ProtocolError."""
    header = await _read_exactly(reader, _LENGTH.size)
    if not header:
        return None
    length = _checked_length(header, limit)
    body = await _read_exactly(reader, length)
    if length and not body:
        raise ProtocolError("the peer closed its connection in the middle of a frame")
    return body


async def _read_exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    """`count` bytes, or none at a clean end. Raises ProtocolError on an end inside."""
    try:
        return await reader.readexactly(count)
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise ProtocolError("the peer closed its connection in the middle of a frame") from end
        return b""


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Blocking write of one frame."""
    sock.sendall(frame(payload))


def receive_frame(sock: socket.socket, limit: int = MAX_FRAME_BYTES) -> bytes | None:
    """Blocking read of one frame; None when the peer closed between two. Raises ProtocolError."""
    header = _receive_exactly(sock, _LENGTH.size)
    if header is None:
        return None
    body = _receive_exactly(sock, _checked_length(header, limit))
    if body is None:
        raise ProtocolError("the peer closed its connection in the middle of a frame")
    return body


def _checked_length(header: bytes, limit: int) -> int:
    length = int(_LENGTH.unpack(header)[0])
    if length > limit:
        raise ProtocolError(f"the peer announced a frame of {length} bytes; the limit is {limit}")
    return length


def _receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    """`count` bytes; None at a clean end before the first. Raises ProtocolError on an end inside."""
    buffer = bytearray(count)
    view, filled = memoryview(buffer), 0
    while filled < count:
        received = sock.recv_into(view[filled:])
        if received == 0:
            if filled:
                raise ProtocolError("the peer closed its connection in the middle of a frame")
            return None
        filled += received
    return bytes(buffer)
