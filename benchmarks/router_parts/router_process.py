"""The product's router, HTTP server and all, in a process of its own and without Ray: its replicas are told by port.

    python benchmarks/router_parts/router_process.py PORT…

Prints the port that it listens on. What `trunkline serve` runs in a Ray actor is this `RouterService` on this loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvloop
from deployment import HOST, MODEL, SECRETS

from protocol.membership import Membership, ReplicaInfo, ReplicaState, ServedModel
from router.collection import settle
from router.launch import RouterLaunch
from router.service import RouterService


async def fixed(ports: list[int]) -> AsyncIterator[Membership]:
    model = ServedModel(MODEL, MODEL, "1", num_wanted=len(ports))
    replicas = (
        ReplicaInfo(f"r{number}", ReplicaState.READY, 1, HOST, port, serves=model.version)
        for number, port in enumerate(ports)
    )
    yield Membership(1, tuple(replicas), (model,))
    await asyncio.Event().wait()


async def serve(ports: list[int]) -> None:
    service = RouterService(RouterLaunch("router-0", HOST, 0, SECRETS), fixed(ports))
    running = asyncio.create_task(service.run())
    _, port = await asyncio.wrap_future(service.address)
    settle()
    print(port, flush=True)
    await running


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
