"""What a simulated deployment suffers, by the command line: several routers, late news, slow replicas.

Read by `simulate.py`.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

from protocol.errors import InvalidRequest
from simulator.simulation import Deployment, Slowdown, fluid_replicas


def with_conditions(deployment: Deployment, options: argparse.Namespace) -> Deployment:
    """Raises InvalidRequest with a sentence."""
    if options.routers < 1:
        raise InvalidRequest(f"--routers must be at least 1, not {options.routers}", param="--routers")
    lag_s = 0.0 if options.event_lag is None else duration_s(options.event_lag, "--event-lag")
    if lag_s and deployment.make_replicas is not fluid_replicas:
        raise InvalidRequest(
            "--event-lag needs --fidelity fluid: exact replicas tell at once", param="--event-lag"
        )
    slowdowns = tuple(_slowdown(text, deployment.num_replicas) for text in options.slow)
    return replace(deployment, num_routers=options.routers, event_lag_s=lag_s, slowdowns=slowdowns)


def duration_s(text: str, option: str) -> float:
    """Of `2s`, `500ms` or `2`. Raises InvalidRequest with a sentence."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|)", text.strip())
    value = 0.0 if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)
    if value <= 0.0:
        raise InvalidRequest(f"{option} must be a time as 2s or 500ms, not {text!r}", param=option)
    return value


def _slowdown(text: str, num_replicas: int) -> Slowdown:
    found = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)(?:@(.+))?", text.strip())
    if found is None or int(found[1]) >= num_replicas or float(found[2]) <= 0.0:
        raise InvalidRequest(
            f"--slow must be REPLICA:FACTOR or REPLICA:FACTOR@TIME with a replica from 0 to {num_replicas - 1}, "
            f"not {text!r}",
            param="--slow",
        )
    since_s = 0.0 if found[3] is None else duration_s(found[3], "--slow")
    return Slowdown(int(found[1]), float(found[2]), since_s)
