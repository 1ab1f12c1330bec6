"""From a YAML file, or from keys, to a `DeploymentConfig`.

Every mistake is an `InvalidRequest` with one sentence: which key, what is wrong, and the nearest key that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from controller.config import DeploymentConfig, Routers, Upgrade, merged
from controller.model_config import Autoscaling, ModelConfig, Section, WorkerResources
from protocol.errors import InvalidRequest, TrunklineError

_ONE_POOL = "a worker's KV lies in one pool, sized by kv_cache_memory_bytes or gpu_memory_utilization"
# Keys of other servers, and what helps instead.
_NOT_SERVED = {
    "pipeline_parallel_size": "layers are not spread over workers, set tensor_parallel_size; `placement: PACK` under"
    " worker lets a replica's workers lie on several nodes",
    "data_parallel_size": "set replicas",
    "swap_space": _ONE_POOL,
    "kv_offloading_size": _ONE_POOL,
    "cpu_offload_gb": "weights are not moved to host memory, raise tensor_parallel_size or set quantization: fp8",
}


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
    for name in ("api_key_file", "secret_file"):
        if isinstance(beside := keys.get(name), str):
            keys[name] = str(path.parent / Path(beside).expanduser())
    over = overrides or {}
    if "models" in keys and (there := [name for name in over if name in ModelConfig.model_fields]):
        raise InvalidRequest(
            f"{str(path)!r} lists several models, so {there[0]} must be said there", param=there[0]
        )
    return build_config(merged(keys, over), origin=str(path))


def build_config(keys: Mapping[str, Any], origin: str = "the command line") -> DeploymentConfig:
    """A validated configuration. Raises InvalidRequest."""
    try:
        return DeploymentConfig.model_validate(dict(keys))
    except ValidationError as error:
        sentences = [
            _sentence(each["type"], _where(each["loc"], keys), each["msg"]) for each in error.errors()
        ]
        raise InvalidRequest(f"{origin}: {'; '.join(sentences)}") from None
    except TrunklineError as error:
        raise InvalidRequest(f"{origin}: {error.message}", param=error.param) from None


def _where(location: tuple[int | str, ...], keys: Mapping[str, Any]) -> tuple[int | str, ...]:
    """As it stands in the file: a lone model's keys stand at its top."""
    inside = location[:1] == ("models",) and "models" not in keys
    return location[2:] if inside else location


def _sentence(kind: str, location: tuple[int | str, ...], message: str) -> str:
    where, said = ".".join(str(part) for part in location), message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"there is no key {where!r}{_nearest(location)}"
    return f"{where}: {said}" if where else said


def _nearest(location: tuple[int | str, ...]) -> str:
    if location[-1] in _NOT_SERVED:
        return f": {_NOT_SERVED[str(location[-1])]}"
    names = _names_beside(location)
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*map(str, location[:-1]), close[0]])!r}?"
    return f"; it takes {', '.join(names)}"


def _names_beside(location: tuple[int | str, ...]) -> list[str]:
    sections: dict[int | str, type[Section]] = {
        "worker": WorkerResources,
        "routers": Routers,
        "upgrade": Upgrade,
        "autoscaling": Autoscaling,
    }
    if len(location) == 1:
        return [*DeploymentConfig.model_fields, *ModelConfig.model_fields]
    return list(sections.get(location[-2], ModelConfig).model_fields)
