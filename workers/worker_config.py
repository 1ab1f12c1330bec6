"""What the controller tells one worker at its start, and what the worker answers. Knows neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.deployment_secrets import DeploymentSecrets
from workers.engine_config import EngineConfig


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    replica_id: str
    incarnation: int
    rank: int
    engine: EngineConfig
    secrets: DeploymentSecrets = field(repr=False)
    num_threads: int = 1  # of OpenMP; the actor's environment must say the same
    host: str | None = None  # address to bind; None: the node's
    start_timeout_s: float = 600.0  # for the ranks to find each other
    hang_timeout_s: float = 300.0  # a step that takes longer is the worker's death


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where rank 0 awaits the other ranks of its replica."""

    host: str
    store_port: int  # torch.distributed's
    plan_port: int  # the step plans'


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where routers reach rank 0's data plane."""

    host: str
    port: int
