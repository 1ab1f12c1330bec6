"""`trunkline scale`, `drain`, `upgrade`: ask a running deployment's controller for another state, and follow it there.

The controller goes on when the command is interrupted: what was asked for stays asked for.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from controller.config_file import load_config
from controller.progress import Progress
from controller.status import DeploymentStatus
from protocol.errors import NoReplica
from protocol.membership import ReplicaState
from trunkline.running import running_deployment

if TYPE_CHECKING:
    from controller.deployment import Deployment


def scale(options: argparse.Namespace) -> int:
    """The exit status, once as many replicas are ready and no more are left."""

    num_replicas: int = options.num_replicas
    model: str | None = options.model

    def reached(status: DeploymentStatus) -> bool:
        replicas = status.replicas if model is None else status.replicas_of(model)
        return len(replicas) == num_replicas and all(each.state is ReplicaState.READY for each in replicas)

    with running_deployment(options.address) as deployment:
        asyncio.run(deployment.scale(num_replicas, model))
        if not options.no_wait:
            asyncio.run(_follow(deployment, reached))
    print(f"{num_replicas} replicas are {'asked for' if options.no_wait else 'ready'}.")
    return 0


def drain(options: argparse.Namespace) -> int:
    """Once the replica is gone, its running requests ended or moved."""
    with running_deployment(options.address) as deployment:
        print(f"Draining {options.replica}.", flush=True)
        asyncio.run(deployment.drain(options.replica))
    print(f"{options.replica} is gone; another takes its place.")
    return 0


def upgrade(options: argparse.Namespace) -> int:
    """0 once everything runs as the file says, 1 when it has been taken back."""
    config = load_config(options.config).with_files_read()
    with running_deployment(options.address) as deployment:
        asyncio.run(deployment.upgrade(config))
        if options.no_wait:
            print("The upgrade has begun.")
            return 0
        status = asyncio.run(_follow(deployment, lambda status: not status.view.upgrading))
    if status.view.upgrade_error:
        print(f"The upgrade has been taken back: {status.view.upgrade_error}")
        return 1
    print("The upgrade is through.")
    return 0


async def _follow(deployment: Deployment, reached: Callable[[DeploymentStatus], bool]) -> DeploymentStatus:
    """Tell what changes until it is reached. Raises NoReplica when the deployment ends before."""
    progress: Progress | None = None
    try:
        async for status in deployment.statuses():
            progress = progress or Progress(status.num_wanted)
            progress.show(status)
            if reached(status):
                return status
    finally:
        if progress is not None:
            progress.close()
    raise NoReplica("the deployment has been stopped meanwhile")
