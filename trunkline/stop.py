"""`trunkline stop`: finds a running deployment through Ray and has its controller drain and stop it."""

from __future__ import annotations

import argparse
import asyncio
import os

from controller.announcement import running_addresses
from controller.joining import prepare_to_join
from protocol.errors import InvalidRequest

DEFAULT_GRACE_S = 30.0


def run(options: argparse.Namespace) -> int:
    grace_s = DEFAULT_GRACE_S if options.grace is None else options.grace
    if grace_s < 0:
        raise InvalidRequest(f"--grace must be at least 0, not {grace_s}")
    address = options.address or os.environ.get("RAY_ADDRESS") or _only_running()
    prepare_to_join(address)
    from controller.deployment import Deployment  # these import Ray, which reads its environment then
    from controller.local_ray import joined

    with joined(address) as cluster:
        deployment = Deployment.find()
        if deployment is None:
            raise InvalidRequest(f"no deployment runs on the Ray at {cluster.address}")
        print(f"Stopping; running requests have {grace_s:g} s.", flush=True)
        asyncio.run(deployment.stop(grace_s))
    print("Stopped.")
    return 0


def _only_running() -> str:
    addresses = running_addresses()
    if not addresses:
        raise InvalidRequest("no deployment of yours runs on this machine; --address names a Ray elsewhere")
    if len(addresses) > 1:
        raise InvalidRequest(
            f"several deployments run here; say which with --address: {', '.join(addresses)}"
        )
    return addresses[0]
