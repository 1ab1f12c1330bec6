"""What a deployment on a Ray costs while nobody asks, and what is left of it afterwards. Used by `lifecycle.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.util import placement_group_table

from controller.status import DeploymentStatus

MEBIBYTE = 1 << 20
TITLE, UNTITLED = "ray::", "default_worker"  # of a Ray worker, once it has a task and before
NOT_OURS = ("DashboardAgent", "RuntimeEnvAgent", "JobSupervisor", "IDLE")  # Ray's own, titled likewise
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Leftovers:
    """Of a deployment, on the Ray of this process."""

    num_actors: int  # named, in the deployment's namespace: all of ours are
    num_groups: int  # placement groups
    workers: tuple[str, ...]  # the titles of Ray's worker processes

    def __str__(self) -> str:
        titles = f" ({', '.join(self.workers)})" if len(self.workers) > self.num_actors else ""
        counts = f"{self.num_actors} actors, {self.num_groups} placement groups"
        return f"{counts}, {len(self.workers)} Ray workers{titles}"

    @property
    def nothing(self) -> bool:
        return not (self.num_actors or self.num_groups or self.workers)


def leftovers() -> Leftovers:
    groups = [table for table in placement_group_table().values() if table["state"] != "REMOVED"]
    titles = map(_title, psutil.Process().children(recursive=True))
    workers = [title.removeprefix(TITLE) for title in titles if title.startswith((TITLE, UNTITLED))]
    ours = (worker for worker in workers if not any(name in worker for name in NOT_OURS))
    return Leftovers(len(ray.util.list_named_actors()), len(groups), tuple(ours))


async def until_nothing_is_left() -> None:
    """Raises TimeoutError with what is still there."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (left := await asyncio.to_thread(leftovers)).nothing:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"there are still {left}")
        await asyncio.sleep(0.05)


def processes_of(status: DeploymentStatus, controller: int) -> dict[str, list[psutil.Process]]:
    """By their parts: the deployment's, and what is Ray's own."""
    parts = {controller: "controller"}
    parts |= {worker.pid: "router" for unit in status.routers for worker in unit.workers}
    parts |= {worker.pid: "worker" for unit in status.replicas for worker in unit.workers}
    found: dict[str, list[psutil.Process]] = {name: [] for name in parts.values()}
    for process in psutil.Process().children(recursive=True):
        found.setdefault(parts.get(process.pid) or f"Ray's {_title(process).removeprefix(TITLE)}", []).append(
            process
        )
    return found


def _title(process: psutil.Process) -> str:
    """What it calls itself, else its script or program: `ray::RouterActor.run`, `log_monitor`, `raylet`."""
    try:
        words = process.cmdline() or ["gone"]
    except psutil.Error:
        return "gone"
    if words[0].startswith(TITLE):
        return words[0].strip()
    scripts = [word for word in words if word.endswith(".py")]
    return Path(scripts[0] if Path(words[0]).name.startswith("python") and scripts else words[0]).stem


async def cost_table(parts: dict[str, list[psutil.Process]], idle_s: float) -> str:
    """CPU over the next `idle_s`, memory at their end; of one process each."""
    before = {process: _cpu_s(process) for group in parts.values() for process in group}
    began_s = time.monotonic()
    await asyncio.sleep(idle_s)
    taken_s = time.monotonic() - began_s
    headings = ("process", "number", "CPU of each, % of a core", "RSS, MiB", "its own alone (USS), MiB")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, group in parts.items():
        cpu = _mean(_cpu_s(process) - before[process] for process in group) / taken_s
        memory = [process.memory_full_info() for process in group]
        rss, uss = _mean(each.rss for each in memory), _mean(each.uss for each in memory)
        sizes = f"{rss / MEBIBYTE:.0f} | {uss / MEBIBYTE:.0f}"
        lines.append(f"| {name} | {len(group)} | {100 * cpu:.2f} | {sizes} |")
    return "\n".join(lines)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
