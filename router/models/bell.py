"""Wakes whoever waits until something is true that others make true, without knowing who waits, or for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Bell:
    """Rung after every change; whoever waits looks again."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def until(self, look: Callable[[], T | None]) -> T:
        """What `look` finds, as soon as it finds something."""
        while (found := look()) is None:
            await self._rung.wait()
        return found
