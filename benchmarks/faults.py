"""Kills a worker, a router, the controller and a whole node under load, on a three-node Ray on this machine.

    python benchmarks/faults.py [--requests 200] [--at-once 8]

Deterministic mode, so every answer must equal the one of an undisturbed run. Clients go to any router and, as behind a
load balancer, to another one when theirs breaks. Prints for each fault what was asked, what was lost or differed, and
how long it took until everything that is wanted was there again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from report import print_header

os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"})

import openai
import ray
from ray.cluster_utils import Cluster

from controller.config import build_config
from controller.deployment import Deployment
from controller.local_ray import CHECKOUT, SLIM
from controller.names import CONTROLLER, NAMESPACE
from controller.status import DeploymentStatus, Phase

# A node's death is seen after four seconds, not after half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
NUM_REPLICAS = 2
NUM_ROUTERS = 2
MAX_TOKENS = 48
PROMPTS = [f"Story {number}: once upon a time there was a fox. " * 6 for number in range(16)]


@dataclass
class Tally:
    asked: int = 0
    lost: int = 0
    differed: int = 0
    asked_again: int = 0  # by the client, of another router


@dataclass
class Site:
    """The deployment and the latest that it said of itself."""

    cluster: Cluster
    nodes: list[Any]
    deployment: Deployment
    status: DeploymentStatus | None = None
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self) -> None:
        async for status in self.deployment.statuses():
            async with self.heard:
                self.status = status
                self.heard.notify_all()

    async def until(self, holds: Callable[[DeploymentStatus], bool]) -> DeploymentStatus:
        async with asyncio.timeout(180), self.heard:
            await self.heard.wait_for(lambda: self.status is not None and holds(self.status))
        assert self.status is not None, "something was heard"
        return self.status


class Clients:
    """Ask every prompt in turn, again and again, so many at once, until told to stop."""

    def __init__(self, site: Site, expected: dict[str, str], at_once: int) -> None:
        self._site = site
        self._expected = expected
        self._at_once = at_once
        self._next = 0
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self.tally = Tally()
        self.stopped = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(*(self._go_on(place) for place in range(self._at_once)))
        for client in self._clients.values():
            await client.close()

    async def _go_on(self, place: int) -> None:
        while not self.stopped.is_set():
            prompt = PROMPTS[self._next % len(PROMPTS)]
            self._next += 1
            await self.ask(prompt, place)

    async def ask(self, prompt: str, place: int) -> str | None:
        self.tally.asked += 1
        for attempt in range(5):
            try:
                text = await self._answer(prompt, place + attempt, stream=bool(place % 2))
            except (openai.APIConnectionError, openai.InternalServerError, BrokenStream):
                self.tally.asked_again += 1
                await asyncio.sleep(0.2)
                continue
            self.tally.differed += self._expected.get(prompt, text) != text
            return text
        self.tally.lost += 1
        return None

    async def _answer(self, prompt: str, place: int, *, stream: bool) -> str:
        assert self._site.status is not None, "the site is up"
        urls = self._site.status.urls
        url = urls[place % len(urls)]
        client = self._clients.setdefault(
            url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        )
        options: dict[str, Any] = {
            "model": "sapling",
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


class BrokenStream(Exception):
    """The router went away within it."""


def ready(status: DeploymentStatus) -> bool:
    return status.phase is Phase.READY and status.num_ready == NUM_REPLICAS


def pids(status: DeploymentStatus) -> set[int]:
    return {worker.pid for unit in (*status.replicas, *status.routers) for worker in unit.workers}


async def kill_worker(site: Site, status: DeploymentStatus) -> None:
    os.kill(status.replicas[0].workers[0].pid, signal.SIGKILL)
    await site.until(lambda now: ready(now) and now.replicas[0].incarnation > status.replicas[0].incarnation)


async def kill_router(site: Site, status: DeploymentStatus) -> None:
    os.kill(status.routers[0].workers[0].pid, signal.SIGKILL)
    await site.until(lambda now: ready(now) and now.routers[0].incarnation > status.routers[0].incarnation)


async def kill_controller(site: Site, status: DeploymentStatus) -> None:
    before = await controller_pid()
    os.kill(before, signal.SIGKILL)
    while await controller_pid() in (0, before):
        await asyncio.sleep(0.05)
    await site.until(ready)


async def kill_node(site: Site, status: DeploymentStatus) -> None:
    """Its raylet and all that runs there."""
    victim = next(node for node in site.nodes if node.node_id == status.replicas[0].workers[0].node)
    lost = {
        worker.pid
        for unit in (*status.replicas, *status.routers)
        for worker in unit.workers
        if worker.node == victim.node_id
    }
    await asyncio.to_thread(site.cluster.remove_node, victim, allow_graceful=False)
    await site.until(lambda now: ready(now) and not pids(now) & lost)


async def controller_pid() -> int:
    try:
        actor: Any = ray.get_actor(CONTROLLER, NAMESPACE)
        return int(await asyncio.wait_for(actor.pid.remote(), 5))
    except Exception:
        return 0  # it is away


FAULTS: dict[str, Callable[[Site, DeploymentStatus], Awaitable[None]]] = {
    "kill -9 of a worker": kill_worker,
    "kill -9 of a router": kill_router,
    "kill -9 of the controller": kill_controller,
    "kill -9 of a node's raylet": kill_node,
}


async def measure(
    site: Site, fault: Callable[..., Awaitable[None]], expected: dict[str, str], requests: int, at_once: int
) -> tuple[Tally, float]:
    """The tally of at least so many requests around the fault, and the seconds until all was there again."""
    status = await site.until(ready)
    clients = Clients(site, expected, at_once)
    running = asyncio.create_task(clients.run())
    while clients.tally.asked < requests // 4:
        await asyncio.sleep(0.05)
    began_s = time.monotonic()
    await fault(site, status)
    taken_s = time.monotonic() - began_s
    while clients.tally.asked < requests:
        await asyncio.sleep(0.05)
    clients.stopped.set()
    await running
    return clients.tally, taken_s


async def run(site: Site, requests: int, at_once: int) -> None:
    following = asyncio.create_task(site.follow())
    began_s = time.monotonic()
    await site.until(ready)
    print(f"Ready after {time.monotonic() - began_s:.1f} s.\n")
    undisturbed = Clients(site, {}, at_once)
    texts = await asyncio.gather(*(undisturbed.ask(prompt, place) for place, prompt in enumerate(PROMPTS)))
    expected = {prompt: text for prompt, text in zip(PROMPTS, texts, strict=True) if text is not None}
    assert len(expected) == len(PROMPTS), "the undisturbed run answers everything"
    print("| fault | requests | lost | other text | asked again by the client | all there again after, s |")
    print("|---|---|---|---|---|---|")
    for name, fault in FAULTS.items():
        tally, taken_s = await measure(site, fault, expected, requests, at_once)
        print(
            f"| {name} | {tally.asked} | {tally.lost} | {tally.differed} | {tally.asked_again} | {taken_s:.1f} |",
            flush=True,
        )
    await site.deployment.stop(5.0)
    following.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="around each fault, at least")
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.update({**SLIM, "PYTHONPATH": str(CHECKOUT)})
    print_header(
        "Faults under load",
        model="sapling, deterministic",
        replicas=NUM_REPLICAS,
        routers=NUM_ROUTERS,
        nodes="a head without CPUs and two with two each",
        at_once=options.at_once,
        tokens=f"{MAX_TOKENS} generated, half of the requests streamed",
        seed=7,
    )
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH},
    )
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        keys = {
            "replicas": NUM_REPLICAS,
            "deterministic": True,
            "routers": {"count": NUM_ROUTERS, "port": 0},
            "worker": {"num_cpus": 1},
        }
        site = Site(cluster, nodes, Deployment.launch(build_config(keys)))
        asyncio.run(run(site, options.requests, options.at_once))
    finally:
        ray.shutdown()  # type: ignore[no-untyped-call]
        cluster.shutdown()


if __name__ == "__main__":
    main()
