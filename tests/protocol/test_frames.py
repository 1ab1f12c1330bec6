"""Frames: whole, cut, too long, over asyncio streams and plain sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from protocol.errors import ProtocolError
from protocol.frames import frame, read_frame, receive_frame, send_frame


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_frames_come_out_as_they_went_in() -> None:
    reader = reader_of(frame(b"one") + frame(b"") + frame(b"four"))
    assert [await read_frame(reader) for _ in range(4)] == [b"one", b"", b"four", None]


@pytest.mark.parametrize("kept", [1, 3, 4, 5, 7])
async def test_a_stream_that_ends_inside_a_frame_is_an_error(kept: int) -> None:
    with pytest.raises(ProtocolError, match="middle of a frame"):
        await read_frame(reader_of(frame(b"abcd")[:kept]))


async def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="limit is 3"):
        await read_frame(reader_of(frame(b"abcd")), limit=3)


def test_sockets_carry_frames_too() -> None:
    left, right = socket.socketpair()
    with left, right:
        send_frame(left, b"x" * 100_000)
        left.close()
        assert receive_frame(right) == b"x" * 100_000
        assert receive_frame(right) is None


@pytest.mark.parametrize("kept", [2, 4, 6])
def test_a_socket_that_ends_inside_a_frame_is_an_error(kept: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(frame(b"abcd")[:kept])
        left.close()
        with pytest.raises(ProtocolError):
            receive_frame(right)
