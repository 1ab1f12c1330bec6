"""Which models are served by which replicas, and where: published by the controller, followed by every router."""

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
    devices: tuple[int, ...] = ()  # GPUs of the node that are its own


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model that clients ask for by its name. Only replicas of one version stand in for each other.

    During an upgrade to another model two versions share a name; new requests go to either, by their replicas.
    """

    name: str
    source: str  # where its files are, as `model_source.py` understands it
    version: str  # a digest of what its replicas and its routers must agree on
    num_wanted: int = 0  # replicas
    current: bool = True  # what the name stands for; another version is on its way out
    max_model_len: int | None = None  # tokens, where a limit is asked for
    scales_to_zero: bool = False  # with no replica, requests are worth taking: they make one start
    admission_timeout_s: float = 60.0  # how long a request without a deadline waits for a replica


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
    serves: str = ""  # the version of a `ServedModel`; nothing where a router is described


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a unit (a replica or a router), and why."""

    at: float  # seconds since the epoch
    unit: str  # empty: to the deployment
    text: str


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """What routers show of the deployment and need not know."""

    routers: tuple[ReplicaInfo, ...] = ()
    upgrading: bool = False
    upgrade_error: str = ""  # why the last upgrade was taken back
    events: tuple[Event, ...] = ()  # the latest, the oldest first


@dataclass(frozen=True, slots=True)
class Membership:
    """A version grows with every change; a router asks for the first one newer than its own."""

    version: int
    replicas: tuple[ReplicaInfo, ...]
    models: tuple[ServedModel, ...] = ()  # whatever is wanted or still served by some replica
    deployment: DeploymentView | None = None
