"""A deployment under load: clients that ask without end, whatever is done to it, and what became of their requests.

Used by `faults.py`, which kills its parts, and `lifecycle.py`, which changes it. Every answer is compared with that of
an undisturbed run, so the deployment is to be a deterministic one. Clients go to any router and, as behind a load
balancer, to another one when theirs breaks.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import openai
import ray

from controller.deployment import Deployment
from controller.names import CONTROLLER, NAMESPACE
from controller.status import DeploymentStatus, Phase

MODEL = "sapling"
MAX_TOKENS = 48
PROMPTS = [f"Story {number}: once upon a time there was a fox. " * 6 for number in range(16)]
ATTEMPTS = 5
PATIENCE_S = 300.0
COLUMNS = ("requests", "lost", "other text", "asked again by the client")

Texts = Mapping[str, frozenset[str]]  # what may be answered, by prompt


@dataclass
class Tally:
    asked: int = 0
    lost: int = 0
    asked_again: int = 0  # by the client, of another router
    answers: list[tuple[str, str]] = field(default_factory=list)  # prompt and text

    def num_other(self, expected: Texts) -> int:
        """Answers that no undisturbed run gives."""
        return sum(text not in expected[prompt] for prompt, text in self.answers)

    def cells(self, expected: Texts) -> str:
        return f"{self.asked} | {self.lost} | {self.num_other(expected)} | {self.asked_again}"


@dataclass(kw_only=True)
class Site:
    """The deployment and the latest that it said of itself."""

    deployment: Deployment
    status: DeploymentStatus | None = None
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self) -> None:
        async for status in self.deployment.statuses():
            async with self.heard:
                self.status = status
                self.heard.notify_all()

    async def until(self, holds: Callable[[DeploymentStatus], bool]) -> DeploymentStatus:
        async with asyncio.timeout(PATIENCE_S), self.heard:
            await self.heard.wait_for(lambda: self.status is not None and holds(self.status))
        assert self.status is not None, "something was heard"
        return self.status


@asynccontextmanager
async def followed(site: Site) -> AsyncIterator[None]:
    following = asyncio.create_task(site.follow())
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


class BrokenStream(Exception):
    """The router went away within it."""


class Clients:
    """Ask every prompt in turn, again and again, so many at once, until told to stop. Every other one streams."""

    def __init__(self, site: Site, at_once: int) -> None:
        self._site = site
        self._at_once = at_once
        self._next = 0
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self.tally = Tally()
        self.stopped = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(*(self._go_on(place) for place in range(self._at_once)))
        await self.aclose()

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _go_on(self, place: int) -> None:
        while not self.stopped.is_set():
            prompt = PROMPTS[self._next % len(PROMPTS)]
            self._next += 1
            await self.ask(prompt, place)

    async def ask(self, prompt: str, place: int) -> None:
        self.tally.asked += 1
        for attempt in range(ATTEMPTS):
            try:
                text = await self._answer(prompt, place + attempt, stream=bool(place % 2))
            except (openai.APIConnectionError, openai.InternalServerError, BrokenStream):
                self.tally.asked_again += 1
                await asyncio.sleep(0.2)
                continue
            self.tally.answers.append((prompt, text))
            return
        self.tally.lost += 1

    async def _answer(self, prompt: str, place: int, *, stream: bool) -> str:
        assert self._site.status is not None, "the site is up"
        urls = self._site.status.urls
        if not urls:
            raise BrokenStream
        url = urls[place % len(urls)]
        client = self._clients.setdefault(
            url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        )
        options: dict[str, Any] = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": MAX_TOKENS,
            "temperature": 0.8,
            "seed": 7,
            "extra_body": {"ignore_eos": True},
        }
        if not stream:
            answer = await client.completions.create(**options)
            return str(answer.choices[0].text)
        chunks = [chunk async for chunk in await client.completions.create(stream=True, **options)]
        if not chunks or chunks[-1].choices[0].finish_reason is None:
            raise BrokenStream
        return "".join(chunk.choices[0].text for chunk in chunks)


async def undisturbed(site: Site) -> Texts:
    """What every prompt is answered with while nothing happens."""
    clients = Clients(site, at_once=0)
    await asyncio.gather(*(clients.ask(prompt, place) for place, prompt in enumerate(PROMPTS)))
    await clients.aclose()
    assert len(clients.tally.answers) == len(PROMPTS), "the undisturbed run answers everything"
    return {prompt: frozenset([text]) for prompt, text in clients.tally.answers}


def either(one: Texts, other: Texts) -> Texts:
    return {prompt: texts | other[prompt] for prompt, texts in one.items()}


async def under_load(
    site: Site, what: Callable[[], Awaitable[None]], requests: int, at_once: int
) -> tuple[Tally, float]:
    """The tally of at least so many requests around it, a quarter of them before, and the seconds that it took."""
    clients = Clients(site, at_once)
    running = asyncio.create_task(clients.run())
    while clients.tally.asked < requests // 4:
        await asyncio.sleep(0.05)
    began_s = time.monotonic()
    await what()
    taken_s = time.monotonic() - began_s
    while clients.tally.asked < requests:
        await asyncio.sleep(0.05)
    clients.stopped.set()
    await running
    return clients.tally, taken_s


def settled(status: DeploymentStatus) -> bool:
    """All that is wanted is ready, and there is nothing else."""
    complete = status.num_ready == len(status.replicas) == status.num_wanted
    return status.phase is Phase.READY and complete and not status.view.upgrading


def pids(status: DeploymentStatus) -> set[int]:
    return {worker.pid for unit in (*status.replicas, *status.routers) for worker in unit.workers}


async def kill_controller(site: Site) -> None:
    """Returns when its successor has said that all is there."""
    said, before = site.status, await controller_pid()
    os.kill(before, signal.SIGKILL)
    while await controller_pid() in (0, before):
        await asyncio.sleep(0.05)
    await site.until(lambda now: now is not said and settled(now))


async def controller_pid() -> int:
    """0: it is away."""
    try:
        actor: Any = ray.get_actor(CONTROLLER, NAMESPACE)
        return int(await asyncio.wait_for(actor.pid.remote(), 5))
    except Exception:
        return 0
