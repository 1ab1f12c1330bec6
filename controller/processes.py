"""Making sure that a worker's process is gone: Ray may call an actor dead while it still runs and holds memory.

Called at the end of every incarnation: directly for the controller's own node, through a Ray task for any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from controller.actor_calls import answer
from protocol.membership import WorkerInfo

REMOTE_TIMEOUT_S = 10.0  # a node that does not answer by then has hung; its replica is not waited for
RAY_TITLE = b"ray::"  # Ray titles its workers so; a process without it is somebody else's under a reused pid


def end_processes(pids: Iterable[int], patience_s: float = 2.0) -> list[int]:
    """Wait for Ray's processes among `pids` to end, kill those that do not; returns those that survived even that."""
    with contextlib.ExitStack() as stack:
        alive = {pid: file for pid in pids if (file := _open(pid)) is not None}
        for file in alive.values():
            stack.callback(os.close, file)
        _await_end(alive, patience_s)
        for file in alive.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(file, signal.SIGKILL)
        _await_end(alive, patience_s)
        return sorted(alive)


def _open(pid: int) -> int | None:
    """A handle that names this process and no later one; None when there is no such process of Ray's."""
    try:
        file = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return None
    if _is_rays(pid):
        return file
    os.close(file)
    return None


def _is_rays(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(RAY_TITLE)
    except OSError:
        return False


def _await_end(alive: dict[int, int], timeout_s: float) -> None:
    """Drop from `alive` every process that ends in time. A pidfd becomes readable when its process does."""
    poll = select.poll()
    for file in alive.values():
        poll.register(file, select.POLLIN)
    by_file = {file: pid for pid, file in alive.items()}
    deadline = time.monotonic() + timeout_s
    while alive and (left := deadline - time.monotonic()) > 0:
        for file, _ in poll.poll(left * 1000):
            poll.unregister(file)
            del alive[by_file[file]]


async def end_everywhere(infos: Sequence[WorkerInfo]) -> list[int]:
    """See that the processes are gone, each on its node; a node that is gone has none."""
    here = ray.get_runtime_context().get_node_id()
    by_node: dict[str, list[int]] = {}
    for info in infos:
        by_node.setdefault(info.node, []).append(info.pid)
    survivors = await asyncio.to_thread(end_processes, by_node.pop(here, []))
    for node, pids in by_node.items():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(end_processes).options(num_cpus=0, scheduling_strategy=there)
        with contextlib.suppress(RayError, TimeoutError):
            survivors += await asyncio.wait_for(answer(task.remote(pids)), REMOTE_TIMEOUT_S)
    return survivors
