"""`trunkline stop`: finds a running deployment through Ray and has its controller drain and stop it."""

from __future__ import annotations

import argparse
import asyncio

from protocol.errors import InvalidRequest
from trunkline.running import running_deployment

DEFAULT_GRACE_S = 30.0


def run(options: argparse.Namespace) -> int:
    grace_s = DEFAULT_GRACE_S if options.grace is None else options.grace
    if grace_s < 0:
        raise InvalidRequest(f"--grace must be at least 0, not {grace_s}")
    with running_deployment(options.address) as deployment:
        print(f"Stopping; running requests have {grace_s:g} s.", flush=True)
        asyncio.run(deployment.stop(grace_s))
    print("Stopped.")
    return 0
