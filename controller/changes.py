"""What may be asked of a running deployment, and what each asking makes of its wanted state. Pure.

Called by `controller.py`. A mistake is an InvalidRequest with one sentence; then nothing has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.config import MOST_REPLICAS, DeploymentConfig
from controller.rollout import Observed, Wanted
from controller.state import DeploymentState
from controller.unit import Unit
from protocol.errors import InvalidRequest

# What routers and replicas must agree on for as long as both run: an upgrade has both at once.
_LASTING = ("model", "block_size")


def scaled(state: DeploymentState, num_replicas: int) -> DeploymentState:
    _check_running(state)
    if state.config.autoscaling is not None:
        raise InvalidRequest(
            "replicas scale by themselves here: change the bounds of autoscaling with `trunkline upgrade`"
        )
    if not 0 <= num_replicas <= MOST_REPLICAS:
        raise InvalidRequest(
            f"the number of replicas must be between 0 and {MOST_REPLICAS}, not {num_replicas}"
        )
    return resized(state, num_replicas)


def resized(state: DeploymentState, num_replicas: int) -> DeploymentState:
    config = state.config.model_copy(update={"replicas": num_replicas})
    return replace(state, config=config)


def upgraded(state: DeploymentState, config: DeploymentConfig) -> DeploymentState:
    """One upgrade over another is one: what failure goes back to is what ran well before both."""
    _check_running(state)
    for name in _LASTING:
        if getattr(config, name) != getattr(state.config, name):
            raise InvalidRequest(
                f"an upgrade cannot change {name}: start a second deployment and move the clients to it",
                param=name,
            )
    if config.autoscaling is not None:  # which knows better than the file how many there should be now
        config = config.model_copy(update={"replicas": state.config.replicas})
    return replace(state, config=config, previous=state.previous or state.config, upgrade_error="")


def taken_back(state: DeploymentState, reason: str) -> DeploymentState:
    """The former configuration, with the number of replicas that is wanted now."""
    assert state.previous is not None, "there is no upgrade to take back"
    config = state.previous.model_copy(update={"replicas": state.config.replicas})
    return replace(state, config=config, previous=None, upgrade_error=reason)


def finished(state: DeploymentState) -> DeploymentState:
    return replace(state, previous=None, upgrade_error="")


def drainable(state: DeploymentState, units: Mapping[str, Unit], name: str) -> Unit:
    _check_running(state)
    unit = units.get(name)
    if unit is None or unit.is_router:
        replicas = ", ".join(sorted(unit.name for unit in units.values() if not unit.is_router))
        raise InvalidRequest(f"there is no replica {name!r}; there are {replicas}", param="replica")
    return unit


def settled(wanted: Wanted, observed: Sequence[Observed]) -> bool:
    """Everything that is wanted is ready, and nothing else is left."""
    replicas = [each for each in observed if not each.is_router]
    routers = [each for each in observed if each.is_router]
    return (
        len(replicas) == wanted.num_replicas
        and len(routers) == len(wanted.routers)
        and all(each.ready and each.revision == wanted.revision for each in replicas)
        and all(each.ready and each.revision == wanted.router_revision for each in routers)
    )


def _check_running(state: DeploymentState) -> None:
    if state.stop_grace_s is not None:
        raise InvalidRequest("the deployment is being stopped")
