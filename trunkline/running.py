"""A deployment that runs already: found through Ray for the commands that change it. Used by `change.py`, `stop.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controller.announcement import running_addresses
from controller.joining import prepare_to_join
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from controller.deployment import Deployment


@contextmanager
def running_deployment(address: str | None) -> Iterator[Deployment]:
    """On the Ray at `address`, at RAY_ADDRESS, or else the only one on this machine. Raises InvalidRequest."""
    address = address or os.environ.get("RAY_ADDRESS") or _only_running()
    prepare_to_join(address)
    from controller.deployment import Deployment  # these import Ray, which reads its environment then
    from controller.local_ray import joined

    with joined(address) as cluster:
        deployment = Deployment.find()
        if deployment is None:
            raise InvalidRequest(f"no deployment runs on the Ray at {cluster.address}")
        yield deployment


def _only_running() -> str:
    addresses = running_addresses()
    if not addresses:
        raise InvalidRequest("no deployment of yours runs on this machine; --address names a Ray elsewhere")
    if len(addresses) > 1:
        raise InvalidRequest(
            f"several deployments run here; say which with --address: {', '.join(addresses)}"
        )
    return addresses[0]
