"""One deployment's wanted state: its models, and what they share. Read by `config_file.py` or the command line.

Where one model is served, its keys stand at the top, beside the others. `models` lists several; a model's key at the
top then holds for each of them that does not say otherwise. Knows neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from controller.model_config import ModelConfig, Section
from protocol.errors import InvalidRequest

LEAST_SECRET = 32  # characters


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


class DeploymentConfig(Section):
    models: tuple[ModelConfig, ...]
    routers: Routers = Routers()
    upgrade: Upgrade = Upgrade()
    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    api_key_file: Path | None = None
    no_api_key: bool = False  # whoever reaches the routers may ask, wherever they listen
    # What block digests, cache salts and the routers' proofs come from; made at random where none is given.
    secret: str | None = Field(default=None, repr=False, min_length=LEAST_SECRET)
    secret_file: Path | None = None
    drain_timeout_s: float = Field(default=30.0, ge=0)  # how long running requests may go on in a drain
    sigterm_timeout_s: float = Field(default=5.0, ge=0)  # at most, when `ray job stop` or the like ends all
    silent_after_s: float = Field(default=30.0, gt=0)  # a worker that does not answer for so long is ended

    @model_validator(mode="before")
    @classmethod
    def _keys_at_the_top_hold_for_every_model(cls, keys: Any) -> Any:
        if not isinstance(keys, Mapping):
            return keys
        shared = {name: value for name, value in keys.items() if name in ModelConfig.model_fields}
        listed = keys.get("models", [{}])
        if isinstance(listed, list | tuple):
            listed = [merged(shared, each) if isinstance(each, Mapping) else each for each in listed]
        return {name: value for name, value in keys.items() if name not in shared} | {"models": listed}

    @model_validator(mode="after")
    def _every_model_has_a_name_of_its_own(self) -> DeploymentConfig:
        if not self.models:
            raise ValueError("models lists none: leave it out to serve the built-in model")
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(
                    f"two models are called {name!r}: give one of them another served_model_name"
                )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What clients ask for."""
        return tuple(model.name for model in self.models)

    @property
    def num_replicas(self) -> int:
        return sum(model.replicas for model in self.models)

    def find(self, name: str) -> ModelConfig | None:
        return next((model for model in self.models if model.name == name), None)

    def resized(self, sizes: Mapping[str, int]) -> DeploymentConfig:
        """With other numbers of replicas, by the models' names."""
        models = tuple(
            model.model_copy(update={"replicas": sizes.get(model.name, model.replicas)})
            for model in self.models
        )
        return self.model_copy(update={"models": models})

    def with_files_read(self) -> DeploymentConfig:
        """Called once, where the files lie; what they hold travels. Raises InvalidRequest."""
        keys, secret = self.api_keys, self.secret
        if self.api_key_file is not None:
            keys += lines_of(self.api_key_file, "api_key_file")
        if self.secret_file is not None:
            secret = "".join(lines_of(self.secret_file, "secret_file"))
            if len(secret) < LEAST_SECRET:
                raise InvalidRequest(
                    f"secret_file {str(self.secret_file)!r} must hold at least {LEAST_SECRET} characters",
                    param="secret_file",
                )
        read = {"api_keys": keys, "secret": secret, "api_key_file": None, "secret_file": None}
        return self.model_copy(update=read)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, section by section."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def lines_of(path: Path, key: str) -> tuple[str, ...]:
    """Without empty ones and comments. Raises InvalidRequest."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{key} {str(path)!r} cannot be read: {error}", param=key) from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not found:
        raise InvalidRequest(f"{key} {str(path)!r} holds nothing", param=key)
    return found
