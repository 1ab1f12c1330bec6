"""What an operator does to a deployment, done under load, on a Ray of one's own on this machine.

    python benchmarks/lifecycle.py [--requests 200] [--at-once 8] [--idle-s 30] [--job]

Scales, drains, upgrades (to other options, to another model, to what cannot start) and restarts the controller, while
clients ask without end. In deterministic mode every answer must equal that of an undisturbed run; while one model takes
another's place, of either's. Then what an idle deployment costs, and what is left when it has stopped. `--job`: the
same deployment as a Ray job, stopped by `ray job stop`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from report import print_header

os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"})

from loaded_site import (
    COLUMNS,
    MAX_TOKENS,
    MODEL,
    Site,
    Tally,
    Texts,
    controller_pid,
    either,
    followed,
    kill_controller,
    pids,
    settled,
    under_load,
    undisturbed,
)
from ray_job import measure_jobs
from ray_processes import cost_table, leftovers, processes_of, until_nothing_is_left
from safetensors.torch import load_file, save_file
from system import ROOT

from controller.config import DeploymentConfig
from controller.config_file import build_config
from controller.deployment import Deployment
from controller.local_ray import connected
from controller.status import DeploymentStatus
from protocol.membership import ReplicaInfo

SETTLE_S = 5.0  # from the last request to idleness
WEIGHTS = "model.safetensors"
KEYS: dict[str, Any] = {
    "replicas": 2,
    "deterministic": True,
    "routers": {"count": 2, "port": 0},
    "worker": {"num_cpus": 1},
}


def config(keys: dict[str, Any]) -> DeploymentConfig:
    return build_config({**KEYS, **keys})


def another_model(folder: Path) -> Path:
    """Of the same tokenizer, and fluent no longer: it answers everything otherwise."""
    shutil.copytree(ROOT / "sapling", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] *= 0.5
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def broken_model(folder: Path) -> Path:
    another_model(folder)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    return folder


def processes(units: tuple[ReplicaInfo, ...]) -> set[tuple[str, int, int]]:
    """Name, incarnation, pid."""
    return {(unit.replica_id, unit.incarnation, worker.pid) for unit in units for worker in unit.workers}


def everything(status: DeploymentStatus) -> set[tuple[str, int, int]]:
    return processes((*status.replicas, *status.routers))


@dataclass
class Changes:
    """Each returns when it is done, as the deployment itself says."""

    site: Site
    restart: str = ""  # what a new controller made of what ran
    taken_back: str = ""  # why

    async def scale(self, num_replicas: int) -> None:
        await self.site.deployment.scale(num_replicas)
        await self.site.until(lambda now: settled(now) and now.num_ready == num_replicas)

    async def drain_one(self) -> None:
        leaving = (await self.site.until(settled)).replicas[0]
        await self.site.deployment.drain(leaving.replica_id)
        await self._until_gone((leaving,))

    async def upgrade(self, keys: dict[str, Any]) -> None:
        former = (await self.site.until(settled)).replicas
        await self.site.deployment.upgrade(config(keys))
        await self._until_gone(former)

    async def upgrade_despite_a_dead_controller(self, keys: dict[str, Any]) -> None:
        former = (await self.site.until(settled)).replicas
        await self.site.deployment.upgrade(config(keys))
        await self.site.until(lambda now: len(now.replicas) > len(former))
        await kill_controller(self.site)
        await self._until_gone(former)

    async def upgrade_routers(self, keys: dict[str, Any]) -> None:
        former = (await self.site.until(settled)).routers
        await self.site.deployment.upgrade(config(keys))
        await self._until_gone(former)

    async def upgrade_in_vain(self, keys: dict[str, Any]) -> None:
        before = await self.site.until(settled)
        await self.site.deployment.upgrade(config(keys))
        await self.site.until(lambda now: now.view.upgrading)
        after = await self.site.until(lambda now: settled(now) and bool(now.view.upgrade_error))
        assert everything(before) == everything(after), "what ran well runs on"
        self.taken_back += f"- taken back: {after.view.upgrade_error.strip().splitlines()[-1]}\n"

    async def restart_controller(self) -> None:
        before = await self.site.until(settled)
        await kill_controller(self.site)
        after = await self.site.until(settled)
        other = len(everything(before) ^ everything(after))
        self.restart = (
            f"Controller killed: {len(everything(before))} replicas and routers before, {len(everything(after))} "
            f"after, {other} of another incarnation or process; then there are {leftovers()}"
        )

    async def _until_gone(self, former: tuple[ReplicaInfo, ...]) -> None:
        left = {worker.pid for unit in former for worker in unit.workers}
        await self.site.until(lambda now: settled(now) and not pids(now) & left)


class Table:
    def __init__(self, site: Site, requests: int, at_once: int) -> None:
        self._site, self._requests, self._at_once = site, requests, at_once
        print(f"| what | {' | '.join(COLUMNS)} | done after, s |\n|---|{'---|' * len(COLUMNS)}---|")

    async def row(self, name: str, what: Callable[[], Awaitable[None]], expected: Texts) -> None:
        tally, taken_s = await under_load(self._site, what, self._requests, self._at_once)
        self.add(name, tally, expected, taken_s)

    def add(self, name: str, tally: Tally, expected: Texts, taken_s: float) -> None:
        print(f"| {name} | {tally.cells(expected)} | {taken_s:.1f} |", flush=True)


async def changes(site: Site, folder: Path, requests: int, at_once: int) -> Changes:
    """Prints a row for each."""
    expected = await undisturbed(site)
    table, made = Table(site, requests, at_once), Changes(site)
    three: dict[str, Any] = {"replicas": 3}
    other = {"model": str(another_model(folder / "other")), "served_model_name": MODEL, "block_size": 32}
    await table.row("scale from 2 to 3", partial(made.scale, 3), expected)
    await table.row("drain a replica", made.drain_one, expected)
    three["max_num_seqs"] = 48
    await table.row("upgrade to another engine option", partial(made.upgrade, three), expected)
    three["max_num_seqs"] = 32
    again = partial(made.upgrade_despite_a_dead_controller, three)
    await table.row("the same, its controller killed amid it", again, expected)
    three["no_api_key"] = True
    await table.row("upgrade of the routers", partial(made.upgrade_routers, three), expected)
    too_small = {**three, "kv_cache_memory_bytes": 1}
    await table.row("upgrade to a KV pool of one byte", partial(made.upgrade_in_vain, too_small), expected)
    broken = {**three, **other, "model": str(broken_model(folder / "broken"))}
    await table.row("upgrade to a model with half its file", partial(made.upgrade_in_vain, broken), expected)
    await table.row("kill -9 of the controller", made.restart_controller, expected)
    change = partial(made.upgrade, {**three, **other})
    tally, taken_s = await under_load(site, change, requests, at_once)
    others = await undisturbed(site)
    assert all(expected[prompt].isdisjoint(others[prompt]) for prompt in expected), "they can be told apart"
    table.add("upgrade to another model", tally, either(expected, others), taken_s)
    await table.row("scale from 3 to 2", partial(made.scale, 2), others)
    return made


async def run(deployment: Deployment, began_s: float, options: argparse.Namespace, folder: Path) -> None:
    site = Site(deployment=deployment)
    async with followed(site):
        await site.until(settled)
        print(f"Ready after {time.monotonic() - began_s:.1f} s, Ray's start included.\n")
        made = await changes(site, folder, options.requests, options.at_once)
        print(f"\n{made.taken_back}\n{made.restart}.\n\nIdle for {options.idle_s:g} s:\n")
        await asyncio.sleep(SETTLE_S)
        print(
            await cost_table(processes_of(await site.until(settled), await controller_pid()), options.idle_s)
        )
        stopped_s = time.monotonic()
        await deployment.stop(5.0)
        await until_nothing_is_left()
        print(f"\nStopped after {time.monotonic() - stopped_s:.1f} s: {leftovers()} are left.", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200, help="around each change, at least")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--idle-s", type=float, default=30.0)
    parser.add_argument("--job", action="store_true", help="as a Ray job too")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    print_header(
        "A deployment's life under load",
        model="sapling, deterministic",
        at_once=options.at_once,
        tokens=f"{MAX_TOKENS} generated, half of the requests streamed",
        routers=KEYS["routers"]["count"],
        seed=7,
    )
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, connected(None):
        logging.disable(logging.WARNING)
        deployment = Deployment.launch(config({}))
        asyncio.run(run(deployment, began_s, options, Path(folder)))
    if options.job:
        asyncio.run(measure_jobs(KEYS))


if __name__ == "__main__":
    main()
