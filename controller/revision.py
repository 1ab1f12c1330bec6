"""What a unit was launched with, as a short digest: units of another one are replaced by an upgrade.

Only what enters a unit's launch counts: a change of the number of replicas replaces nobody. Called by `controller.py`.
"""

from __future__ import annotations

import hashlib
import json

from controller.config import DeploymentConfig

_OF_ROUTERS = {"model", "served_model_name", "api_keys", "no_api_key"}
_OF_NEITHER = {
    "silent_after_s",
    "replicas",
    "routers",
    "upgrade",
    "autoscaling",
    "drain_timeout_s",
    "start_timeout_s",
    "api_key_file",
}


def replica_revision(config: DeploymentConfig) -> str:
    return _digest(config.model_dump(mode="json", exclude=(_OF_ROUTERS | _OF_NEITHER) - {"model"}))


def router_revision(config: DeploymentConfig) -> str:
    shared = config.model_dump(mode="json", include=_OF_ROUTERS)
    listening = {"host": config.routers.host, "port": config.routers.port}
    return _digest({**shared, **listening, "admission_timeout_s": config.admission_timeout_s})


def _digest(launched_with: dict[str, object]) -> str:
    text = json.dumps(launched_with, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
