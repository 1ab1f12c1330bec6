"""What may be asked of a running deployment, and what each asking makes of its wanted state. Pure.

Called by `controller.py`. A mistake is an InvalidRequest with one sentence; then nothing has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.config import DeploymentConfig
from controller.model_config import MOST_REPLICAS, ModelConfig
from controller.rollout import Observed, Wanted
from controller.state import DeploymentState
from controller.unit import Unit
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from protocol.membership import ReplicaState


def model_meant(config: DeploymentConfig, name: str | None) -> ModelConfig:
    """None: the only one."""
    if name is None and len(config.models) == 1:
        return config.models[0]
    found = None if name is None else config.find(name)
    if found is None:
        said = "say which model" if name is None else f"there is no model {name!r}"
        raise InvalidRequest(f"{said}: there are {', '.join(config.names)}", param="model")
    return found


def scaled(state: DeploymentState, num_replicas: int, model: str | None = None) -> DeploymentState:
    _check_running(state)
    meant = model_meant(state.config, model)
    if meant.autoscaling is not None:
        raise InvalidRequest(
            "replicas scale by themselves here: change the bounds of autoscaling with `trunkline upgrade`"
        )
    if not 0 <= num_replicas <= MOST_REPLICAS:
        raise InvalidRequest(
            f"the number of replicas must be between 0 and {MOST_REPLICAS}, not {num_replicas}"
        )
    return resized(state, {meant.name: num_replicas})


def resized(state: DeploymentState, sizes: Mapping[str, int]) -> DeploymentState:
    """Other numbers of replicas, by the models' names."""
    return replace(state, config=state.config.resized(sizes))


def upgraded(state: DeploymentState, config: DeploymentConfig) -> DeploymentState:
    """One upgrade over another is one: what failure goes back to is what ran well before both."""
    _check_running(state)
    if config.secret is not None and DeploymentSecrets.derived(config.secret) != state.secrets:
        raise InvalidRequest(
            "an upgrade cannot change the secret, on which caches and connections rest: leave it out",
            param="secret_file",
        )
    scaling = {model.name for model in config.models if model.autoscaling is not None}
    # Demand knows better than the file how many of them there should be now.
    sizes = {name: num for name, num in _sizes(state.config).items() if name in scaling}
    config = config.resized(sizes).model_copy(update={"secret": None})
    return replace(state, config=config, previous=state.previous or state.config, upgrade_error="")


def taken_back(state: DeploymentState, reason: str) -> DeploymentState:
    """The former configuration, with the numbers of replicas that are wanted now."""
    assert state.previous is not None, "there is no upgrade to take back"
    config = state.previous.resized(_sizes(state.config))
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


def condemns(unit: Unit, revision: str) -> bool:
    """Started as an upgrade asks, by its revision, it failed twice, or in a way that trying again cannot help."""
    failed = unit.state is ReplicaState.FAILED and unit.revision == revision
    return failed and (unit.hopeless or (unit.failures >= 2 and not unit.proven))


def settled(wanted: Wanted, observed: Sequence[Observed]) -> bool:
    """Everything that is wanted is ready, and nothing else is left."""
    numbers = {"": len(wanted.routers)} | {model.name: model.num_replicas for model in wanted.models}
    return Counter(each.model for each in observed) == Counter(numbers) and all(
        each.ready and each.revision == wanted.revision_of(each.model) for each in observed
    )


def _sizes(config: DeploymentConfig) -> dict[str, int]:
    return {model.name: model.replicas for model in config.models}


def _check_running(state: DeploymentState) -> None:
    if state.stop_grace_s is not None:
        raise InvalidRequest("the deployment is being stopped")
