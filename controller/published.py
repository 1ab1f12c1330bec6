"""A value with a version that others follow by long poll. Knows nothing of what it holds, nor of Ray."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Published(Generic[T]):
    """One writer, any number of waiters, all on one event loop."""

    def __init__(self) -> None:
        self._version = 0
        self._value: T | None = None
        self._changed = asyncio.Event()

    @property
    def version(self) -> int:
        return self._version

    def publish(self, value: T) -> bool:
        """Wake everybody who waits; an equal value is no news."""
        if self._version and value == self._value:
            return False
        self._version += 1
        self._value = value
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def other_than(self, version: int | None) -> tuple[int, T]:
        """The newest value as soon as its version is not the caller's. None: whatever there is, once there is any.

        "Not the caller's" and not "above", because a restarted writer counts anew.
        """
        while not self._version or version == self._version:
            await self._changed.wait()
        assert self._value is not None, "a version without a value"
        return self._version, self._value
