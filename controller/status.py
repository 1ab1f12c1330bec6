"""A deployment in one picture, for whoever watches it: what `trunkline serve` prints and waits for."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from protocol.membership import DeploymentView, Membership, ReplicaInfo, ReplicaState, ServedModel


class Phase(enum.Enum):
    STARTING = "starting"
    READY = "ready"  # every replica and every router
    HOPELESS = "hopeless"  # something cannot start until the wanted state changes
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    phase: Phase
    replicas: tuple[ReplicaInfo, ...]
    models: tuple[ServedModel, ...]
    view: DeploymentView
    detail: str = ""  # why it is hopeless

    @property
    def routers(self) -> tuple[ReplicaInfo, ...]:
        return self.view.routers

    @property
    def num_wanted(self) -> int:
        return sum(model.num_wanted for model in self.models)

    @property
    def num_ready(self) -> int:
        return sum(replica.state is ReplicaState.READY for replica in self.replicas)

    def replicas_of(self, model: str) -> tuple[ReplicaInfo, ...]:
        """By the name that clients ask for, whatever version they serve."""
        versions = {each.version for each in self.models if each.name == model}
        return tuple(replica for replica in self.replicas if replica.serves in versions)

    @property
    def urls(self) -> tuple[str, ...]:
        ready = [router for router in self.routers if router.state is ReplicaState.READY]
        return tuple(url_of(router.host or "", router.port or 0) for router in ready)


def url_of(host: str, port: int) -> str:
    """IPv6 addresses in brackets; a wildcard is reached through loopback."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def status_of(membership: Membership, hopeless: str, stopping: bool) -> DeploymentStatus:
    view = membership.deployment
    assert view is not None, "the controller shows the whole of its deployment"
    units = (*membership.replicas, *view.routers)
    if stopping:
        phase = Phase.STOPPING if units else Phase.STOPPED
    elif hopeless:
        phase = Phase.HOPELESS
    elif units and all(unit.state is ReplicaState.READY for unit in units):
        phase = Phase.READY
    else:
        phase = Phase.STARTING
    return DeploymentStatus(phase, membership.replicas, membership.models, view, hopeless)
