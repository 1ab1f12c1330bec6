"""Messages survive the wire, old and new versions understand each other, nonsense is a ProtocolError."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.events import Cleared, Removed, Stored
from protocol.messages import (
    Cancel,
    FinishReason,
    Hello,
    Identity,
    Load,
    Ping,
    Rejected,
    SequenceOutput,
    StepFrame,
    Submit,
    TokenLogprob,
)
from protocol.sampling import SamplingParams

LOAD = Load(1, 2, 100, 40, 30, 512)
OUTPUT = SequenceOutput(
    "r", 0, (5, 6), 16, FinishReason.STOP, 6, (TokenLogprob(-0.1, 1, ((5, -0.1), (7, -3.0))),)
)
MESSAGES = [
    Submit("r", b"\1\0\0\0", SamplingParams(n=2, stop=("a", "b"), logit_bias=((3, 1.5),), seed=-4)),
    Submit("r", b"", SamplingParams(), generated=(b"\1\0\0\0", b""), finished=(1,), deadline_s=2.5),
    Hello(1, b"n", b"p", "router", Identity("m", "d", "t")),
    StepFrame(7, (OUTPUT,), (Stored(b"x" * 16, None), Removed(b"y" * 16), Cleared()), LOAD),
    Rejected("r", "overloaded", "wait", None),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: object) -> None:
    assert decode(encode(message)) == message


def test_fields_that_an_older_peer_did_not_send_take_their_defaults() -> None:
    array = msgpack.unpackb(encode(MESSAGES[0]))
    assert decode(msgpack.packb(array[:4])) == Submit("r", b"\1\0\0\0", MESSAGES[0].sampling)  # type: ignore[attr-defined]


def test_fields_that_a_newer_peer_added_are_ignored() -> None:
    array = msgpack.unpackb(encode(Ping(3)))
    assert decode(msgpack.packb([*array, "new", {"a": 1}])) == Ping(3)


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"\xc1", b"\x90", b"\x91\xcd\xff\xff", b"\x93\x0a", b"\x01\x02", encode(Cancel("r"))[:-1]],
    ids=["empty", "reserved", "no type", "unknown type", "cut", "trailing", "short"],
)
def test_nonsense_is_a_protocol_error(nonsense: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(nonsense)


def test_a_missing_field_without_a_default_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(msgpack.packb([11]))


def test_a_value_that_sampling_refuses_is_a_protocol_error() -> None:
    array: list[Any] = msgpack.unpackb(encode(MESSAGES[0]))
    array[3][0] = 0  # n
    with pytest.raises(ProtocolError, match="n must be"):
        decode(msgpack.packb(array))


@given(st.binary(max_size=64))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(data)
