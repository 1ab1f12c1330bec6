"""What signals make of a driver that watches."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from ray.exceptions import RayError

from controller.config import DeploymentConfig
from controller.config_file import build_config
from controller.foreground import Foreground


class Deployment:
    """Runs until it is stopped, and remembers how."""

    def __init__(self) -> None:
        self.graces_s: list[float] = []
        self.watched = asyncio.Event()
        self.emptied = asyncio.Event()

    async def statuses(self) -> AsyncIterator[None]:
        self.watched.set()
        await asyncio.Event().wait()
        yield

    async def stop(self, grace_s: float) -> None:
        self.graces_s.append(grace_s)
        if grace_s > 0:
            await self.emptied.wait()


def config(**keys: object) -> DeploymentConfig:
    return build_config({"drain_timeout_s": 30.0, **keys})


async def interrupted(deployment: Deployment, config: DeploymentConfig, *signals: int) -> int:
    running = asyncio.create_task(Foreground(deployment, config, None, 0.0).run())  # type: ignore[arg-type]
    await deployment.watched.wait()
    for each in signals:
        os.kill(os.getpid(), each)
        await asyncio.sleep(0.01)
    deployment.emptied.set()
    return await running


@pytest.mark.parametrize(
    ("received", "grace_s"), [(signal.SIGINT, 30.0), (signal.SIGHUP, 30.0), (signal.SIGTERM, 5.0)]
)
async def test_who_sends_sigterm_waits_less_than_a_person(received: int, grace_s: float) -> None:
    deployment = Deployment()
    assert await interrupted(deployment, config(), received) == 0
    assert deployment.graces_s == [grace_s]


async def test_sigterm_gives_no_more_time_than_any_drain_has() -> None:
    deployment = Deployment()
    await interrupted(deployment, config(drain_timeout_s=1.0, sigterm_timeout_s=60.0), signal.SIGTERM)
    assert deployment.graces_s == [1.0]


async def test_a_second_signal_stops_at_once() -> None:
    deployment = Deployment()
    await interrupted(deployment, config(), signal.SIGINT, signal.SIGINT)
    assert deployment.graces_s == [30.0, 0.0]


async def test_a_stop_that_fails_is_no_success() -> None:
    class Failing(Deployment):
        async def stop(self, grace_s: float) -> None:
            raise RayError("gone")

    assert await interrupted(Failing(), config(), signal.SIGINT) == 1
