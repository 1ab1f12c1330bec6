"""One model of a deployment, as its configuration asks for it: the model, its engine, its replicas and what they hold.

Part of `config.py`. Keys are named as the options of `trunkline serve`, which are those of `vllm serve`. Knows neither
Ray nor torch.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.engine_config import EngineConfig

MOST_REPLICAS = 1024


class Section(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class WorkerResources(Section):
    """What one worker, i.e. one rank of a replica, asks of Ray. One placement group bundle."""

    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    resources: dict[str, float] = {}
    label_selector: dict[str, str] = {}
    placement: Literal["STRICT_PACK", "PACK"] = "STRICT_PACK"
    env: dict[str, str] = {}

    @model_validator(mode="after")
    def _asks_for_something(self) -> WorkerResources:
        if not (self.num_cpus or self.num_gpus or any(self.resources.values())):
            raise ValueError(
                "num_cpus, num_gpus or resources must be above 0, so that Ray can place a worker"
            )
        return self

    @property
    def num_threads(self) -> int:
        """Of OpenMP: as many as the CPUs that the worker asked for."""
        return max(1, int(self.num_cpus))

    @property
    def bundle(self) -> dict[str, float]:
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in asked.items() if amount > 0}


class Autoscaling(Section):
    """Replicas between two bounds, as the demand calls for; then `replicas` only says how many there are at first."""

    min_replicas: int = Field(
        default=1, ge=0, le=MOST_REPLICAS
    )  # 0: requests wait at the routers while one starts
    max_replicas: int = Field(ge=1, le=MOST_REPLICAS)
    target_utilization: float = Field(default=0.7, gt=0.0, le=1.0)  # of prefill time, rows and KV blocks
    up_after_s: float = Field(default=10.0, ge=0.0)  # more have been needed for so long
    down_after_s: float = Field(default=300.0, ge=0.0)  # fewer have been enough for so long

    @model_validator(mode="after")
    def _bounds_hold(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, above max_replicas, {self.max_replicas}")
        return self


class ModelConfig(Section):
    model: str = "sapling"
    served_model_name: str | None = None
    replicas: int = Field(default=2, ge=0, le=MOST_REPLICAS)
    autoscaling: Autoscaling | None = None
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    deterministic: bool = False
    async_scheduling: bool = False
    enforce_eager: bool = False
    load_format: str = "auto"
    seed: int = 0
    worker: WorkerResources = WorkerResources()
    start_timeout_s: float = Field(default=600.0, gt=0)  # from a worker's process to its warm-up pass
    hang_timeout_s: float = Field(default=300.0, gt=0)  # a step that takes longer ends its replica

    @model_validator(mode="after")
    def _engine_options_hold(self) -> ModelConfig:
        self.engine()
        return self

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.served_model_name or self.model

    @property
    def scales_to_zero(self) -> bool:
        return self.autoscaling is not None and self.autoscaling.min_replicas == 0

    @property
    def admission_timeout_s(self) -> float:
        """How long a request waits for a replica: where they scale to zero, as long as one may take to start."""
        return max(60.0, self.start_timeout_s) if self.scales_to_zero else 60.0

    def engine(self) -> EngineConfig:
        names = {each.name for each in fields(EngineConfig)}
        return EngineConfig(**{name: value for name, value in self if name in names})
