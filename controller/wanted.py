"""From a configuration to what is wanted: units, and what each is launched with, as a short digest (its revision).

Units of another revision are replaced by an upgrade. Only what enters a unit's launch counts: a change of the number of
replicas replaces nobody. Called by `controller.py`, `picture.py` and `demand_watch.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from controller.config import DeploymentConfig
from controller.model_config import ModelConfig
from controller.names import router_name, router_on
from controller.rollout import Wanted, WantedModel
from protocol.membership import ServedModel

# Replicas that differ in one of these cannot stand in for each other: other tokens, or other digests of them.
_OF_A_VERSION = {"model", "served_model_name", "block_size"}
_NOT_OF_A_REPLICA = {"replicas", "autoscaling", "start_timeout_s"}
_OF_A_ROUTER = {"api_keys", "no_api_key"}


def _replica_revision(model: ModelConfig) -> str:
    return _digest(model.model_dump(mode="json", exclude=_NOT_OF_A_REPLICA))


def _router_revision(config: DeploymentConfig) -> str:
    listening = {"host": config.routers.host, "port": config.routers.port}
    return _digest({**config.model_dump(mode="json", include=_OF_A_ROUTER), **listening})


def served_model(model: ModelConfig) -> ServedModel:
    """As routers are told of it."""
    return ServedModel(
        name=model.name,
        source=model.model,
        version=_digest(model.model_dump(mode="json", include=_OF_A_VERSION)),
        num_wanted=model.replicas,
        max_model_len=model.max_model_len,
        scales_to_zero=model.scales_to_zero,
        admission_timeout_s=model.admission_timeout_s,
    )


def wanted_of(config: DeploymentConfig, nodes: Sequence[str]) -> Wanted:
    """`nodes`: by their ids in Ray, where each is to have a router."""
    models = tuple(
        WantedModel(model.name, model.replicas, _replica_revision(model)) for model in config.models
    )
    if config.routers.per_node:
        routers = tuple(router_on(node) for node in nodes)
    else:
        routers = tuple(router_name(index) for index in range(config.routers.count))
    return Wanted(models, routers, _router_revision(config), config.upgrade.surge)


def _digest(launched_with: dict[str, object]) -> str:
    text = json.dumps(launched_with, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
