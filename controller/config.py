"""One deployment's wanted state, as read from `cluster_configs/*.yaml` or built from the command line.

Every mistake is an `InvalidRequest` with one sentence: which key, what is wrong, and the nearest key that exists.
Knows neither Ray nor torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.errors import InvalidRequest, TrunklineError
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


class Routers(Section):
    """The HTTP endpoint: `count` routers, or one on each node of the Ray.

    Router i of `count` listens at `port` + i, one of a node at `port`; where `port` is 0, at a free one each.
    """

    count: int = Field(default=1, ge=1, le=64)
    per_node: bool = False  # then `count` says nothing
    host: str = "127.0.0.1"  # `node`: the address by which Ray knows the router's node
    port: int = Field(default=8000, ge=0, le=65535)

    @model_validator(mode="after")
    def _one_of_both(self) -> Routers:
        if self.per_node and self.count != 1:
            raise ValueError(
                "routers.count says nothing where routers.per_node is true: leave one of them out"
            )
        return self

    def port_of(self, index: int) -> int:
        return self.port + index if self.port else 0


class Upgrade(Section):
    """How units of another configuration replace those that run."""

    surge: int = Field(
        default=1, ge=0, le=64
    )  # replicas beyond `replicas` meanwhile; 0: drain one, then start


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


class DeploymentConfig(Section):
    """Top-level keys are named as the options of `trunkline serve`, which are those of `vllm serve`."""

    model: str = "sapling"
    served_model_name: str | None = None
    replicas: int = Field(default=2, ge=0, le=MOST_REPLICAS)
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    deterministic: bool = False
    async_scheduling: bool = False
    load_format: str = "auto"
    seed: int = 0
    worker: WorkerResources = WorkerResources()
    routers: Routers = Routers()
    upgrade: Upgrade = Upgrade()
    autoscaling: Autoscaling | None = None
    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    api_key_file: Path | None = None
    no_api_key: bool = False  # whoever reaches the routers may ask, wherever they listen
    drain_timeout_s: float = Field(default=30.0, ge=0)  # how long running requests may go on in a drain
    start_timeout_s: float = Field(default=600.0, gt=0)  # from a worker's process to its warm-up pass
    hang_timeout_s: float = Field(default=300.0, gt=0)  # a step that takes longer ends its replica
    silent_after_s: float = Field(default=30.0, gt=0)  # so does a worker that does not answer for so long

    @model_validator(mode="after")
    def _engine_options_hold(self) -> DeploymentConfig:
        self.engine()
        return self

    @property
    def admission_timeout_s(self) -> float:
        """How long a request waits for a replica: where they scale to zero, as long as one may take to start."""
        to_zero = self.autoscaling is not None and self.autoscaling.min_replicas == 0
        return max(60.0, self.start_timeout_s) if to_zero else 60.0

    def engine(self) -> EngineConfig:
        names = {each.name for each in fields(EngineConfig)}
        return EngineConfig(**{name: value for name, value in self if name in names})

    def bearer_keys(self) -> tuple[str, ...]:
        """Keys given here and in the file. Called once, where the file lies; the result travels."""
        if self.api_key_file is None:
            return self.api_keys
        try:
            lines = self.api_key_file.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f"api_key_file {str(self.api_key_file)!r} cannot be read: {error}", param="api_key_file"
            ) from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InvalidRequest(
                f"api_key_file {str(self.api_key_file)!r} holds no key", param="api_key_file"
            )
        return (*self.api_keys, *found)

    def with_keys_read(self) -> DeploymentConfig:
        return self.model_copy(update={"api_keys": self.bearer_keys(), "api_key_file": None})


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> DeploymentConfig:
    """A YAML file with single keys laid over it. Raises InvalidRequest."""
    path = Path(path)
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the configuration {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"the configuration {str(path)!r} is not YAML: {error}") from error
    if not isinstance(read, dict | None):
        raise InvalidRequest(f"the configuration {str(path)!r} must hold keys with values")
    keys = dict(read or {})
    if isinstance(key_file := keys.get("api_key_file"), str):
        keys["api_key_file"] = str(path.parent / Path(key_file).expanduser())
    return build_config(merged(keys, overrides or {}), origin=str(path))


def build_config(keys: Mapping[str, Any], origin: str = "the command line") -> DeploymentConfig:
    """A validated configuration. Raises InvalidRequest."""
    try:
        return DeploymentConfig.model_validate(dict(keys))
    except ValidationError as error:
        sentences = [_sentence(each["type"], each["loc"], each["msg"]) for each in error.errors()]
        raise InvalidRequest(f"{origin}: {'; '.join(sentences)}") from None
    except TrunklineError as error:
        raise InvalidRequest(f"{origin}: {error.message}", param=error.param) from None


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, section by section."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _sentence(kind: str, location: tuple[int | str, ...], message: str) -> str:
    where, said = ".".join(str(part) for part in location), message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"there is no key {where!r}{_nearest(location)}"
    return f"{where}: {said}" if where else said


def _nearest(location: tuple[int | str, ...]) -> str:
    sections: dict[str, type[Section]] = {
        "worker": WorkerResources,
        "routers": Routers,
        "upgrade": Upgrade,
        "autoscaling": Autoscaling,
    }
    section = sections.get(str(location[0]), DeploymentConfig) if len(location) > 1 else DeploymentConfig
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*map(str, location[:-1]), close[0]])!r}?"
    return f"; it takes {', '.join(section.model_fields)}"
