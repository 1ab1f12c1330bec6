"""A replica whose engine has failed, while its process still stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from protocol.messages import Submit


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def test_it_greets_no_router_that_comes_back(
    replica: Any, runner: Any, submit: Callable[..., Submit]
) -> None:
    runner.fails_at = 0
    async with replica.router() as router:
        await router.snapshot()
        router.send(submit())
        await until(lambda: not replica.server.connections)
    assert "the device is on fire" in replica.deaths[0]
    with pytest.raises(ConnectionRefusedError):
        async with replica.router():
            pass
