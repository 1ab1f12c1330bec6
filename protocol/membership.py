"""Which replicas exist and where: published by the controller, followed by every router, shown by `status`."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ReplicaState(enum.Enum):
    STARTING = "starting"
    READY = "ready"  # a forward pass has run on every rank
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    rank: int
    pid: int
    node: str


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """One replica as the controller sees it. The address is that of rank 0's data plane."""

    replica_id: str
    state: ReplicaState
    incarnation: int  # grows with every new start of the same replica
    host: str | None = None
    port: int | None = None
    workers: tuple[WorkerInfo, ...] = ()
    detail: str = ""  # what it waits for, or why it failed


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a unit (a replica or a router), and why."""

    at: float  # seconds since the epoch
    unit: str  # empty: to the deployment
    text: str


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """What routers show of the deployment and need not know."""

    num_wanted: int  # replicas
    routers: tuple[ReplicaInfo, ...] = ()
    upgrading: bool = False
    upgrade_error: str = ""  # why the last upgrade was taken back
    events: tuple[Event, ...] = ()  # the latest, the oldest first


@dataclass(frozen=True, slots=True)
class Membership:
    """A version grows with every change; a router asks for the first one newer than its own."""

    version: int
    replicas: tuple[ReplicaInfo, ...]
    deployment: DeploymentView | None = None
