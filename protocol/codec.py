"""Frozen dataclasses to msgpack arrays `[type, fields…]` and back. Messages are defined elsewhere with `@message`.

Fields are only ever appended, with a default: a receiver fills in what an older peer did not send and drops
what a newer one added, so version N speaks N-1. Anything else that does not decode is a `ProtocolError`.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgpack

from protocol.errors import ProtocolError, TrunklineError

T = TypeVar("T")
_CLASSES: dict[int, type] = {}  # filled by the decorator at import, read-only afterwards
_TYPES: dict[type, int] = {}


def message(number: int) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass under its type number, which is never used again for another."""

    def register(cls: type[T]) -> type[T]:
        assert number not in _CLASSES, f"message type {number} is taken by {_CLASSES.get(number)}"
        _CLASSES[number] = cls
        _TYPES[cls] = number
        return cls

    return register


def encode(value: Any) -> bytes:
    """One message to bytes."""
    return bytes(msgpack.packb(value, default=_array))


def decode(data: bytes) -> Any:
    """Bytes to the one message that they hold. Raises ProtocolError."""
    try:
        return _message(msgpack.unpackb(data, use_list=False))
    except TrunklineError as error:
        raise ProtocolError(f"a message from a peer has a wrong value: {error.message}") from error
    except (ValueError, TypeError, KeyError, IndexError, AssertionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a message from a peer does not decode: {error!r}") from error


def _array(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    fields = [getattr(value, name) for name in _names(value.__class__)]
    number = _TYPES.get(type(value))
    return fields if number is None else [number, *fields]


def _message(array: Any) -> Any:
    return _build(_CLASSES[array[0]], array[1:])


def _build(cls: type, values: Any) -> Any:
    readers = _readers(cls)
    return cls(
        *[value if read is None else read(value) for read, value in zip(readers, values, strict=False)]
    )


@cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@cache
def _readers(cls: type) -> tuple[Callable[[Any], Any] | None, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(_reader(hints[name]) for name in _names(cls))


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    """How to read a field of this type; None when msgpack already gives it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        present = [arg for arg in args if arg is not types.NoneType]
        read = _message if all(arg in _TYPES for arg in present) else _only(present)
        return None if read is None else lambda value: None if value is None else read(value)
    if origin is tuple and args[-1] is Ellipsis:
        item = _reader(args[0])
        return None if item is None else lambda value: tuple(item(each) for each in value)
    if hint in _TYPES:
        return _message
    if dataclasses.is_dataclass(hint):
        return lambda value: _build(typing.cast(type, hint), value)
    return hint if isinstance(hint, type) and issubclass(hint, enum.Enum) else None


def _only(hints: list[Any]) -> Callable[[Any], Any] | None:
    readers = [reader for reader in map(_reader, hints) if reader is not None]
    assert not readers or len(hints) == 1, (
        "a union of plain and structured types cannot be told apart on the wire"
    )
    return readers[0] if readers else None
