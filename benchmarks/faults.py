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
from dataclasses import dataclass
from functools import partial
from typing import Any

from report import print_header

os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"})

import ray
from loaded_site import (
    COLUMNS,
    MAX_TOKENS,
    Site,
    followed,
    kill_controller,
    pids,
    settled,
    under_load,
    undisturbed,
)
from ray.cluster_utils import Cluster

from controller.config_file import build_config
from controller.deployment import Deployment
from controller.local_ray import CHECKOUT, SLIM
from controller.names import NAMESPACE
from controller.status import DeploymentStatus

# A node's death is seen after four seconds, not after half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
NUM_REPLICAS = 2
NUM_ROUTERS = 2


@dataclass(kw_only=True)
class ThreeNodes(Site):
    cluster: Cluster
    nodes: list[Any]  # but the head


async def kill_worker(site: ThreeNodes, status: DeploymentStatus) -> None:
    os.kill(status.replicas[0].workers[0].pid, signal.SIGKILL)
    await site.until(
        lambda now: settled(now) and now.replicas[0].incarnation > status.replicas[0].incarnation
    )


async def kill_router(site: ThreeNodes, status: DeploymentStatus) -> None:
    os.kill(status.routers[0].workers[0].pid, signal.SIGKILL)
    await site.until(lambda now: settled(now) and now.routers[0].incarnation > status.routers[0].incarnation)


async def kill_the_controller(site: ThreeNodes, status: DeploymentStatus) -> None:
    await kill_controller(site)


async def kill_node(site: ThreeNodes, status: DeploymentStatus) -> None:
    """Its raylet and all that runs there."""
    victim = next(node for node in site.nodes if node.node_id == status.replicas[0].workers[0].node)
    lost = {
        worker.pid
        for unit in (*status.replicas, *status.routers)
        for worker in unit.workers
        if worker.node == victim.node_id
    }
    await asyncio.to_thread(site.cluster.remove_node, victim, allow_graceful=False)
    await site.until(lambda now: settled(now) and not pids(now) & lost)


FAULTS: dict[str, Callable[[ThreeNodes, DeploymentStatus], Awaitable[None]]] = {
    "kill -9 of a worker": kill_worker,
    "kill -9 of a router": kill_router,
    "kill -9 of the controller": kill_the_controller,
    "kill -9 of a node's raylet": kill_node,
}


async def run(site: ThreeNodes, requests: int, at_once: int) -> None:
    began_s = time.monotonic()
    async with followed(site):
        await site.until(settled)
        print(f"Ready after {time.monotonic() - began_s:.1f} s.\n")
        expected = await undisturbed(site)
        print(
            f"| fault | {' | '.join(COLUMNS)} | all there again after, s |\n|---|{'---|' * len(COLUMNS)}---|"
        )
        for name, fault in FAULTS.items():
            status = await site.until(settled)
            tally, taken_s = await under_load(site, partial(fault, site, status), requests, at_once)
            print(f"| {name} | {tally.cells(expected)} | {taken_s:.1f} |", flush=True)
        await site.deployment.stop(5.0)


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
        deployment = Deployment.launch(build_config(keys))
        site = ThreeNodes(deployment=deployment, cluster=cluster, nodes=nodes)
        asyncio.run(run(site, options.requests, options.at_once))
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
