"""A stage for the models of one router: fake replicas, and models without files, since `Reader` reads what it likes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import ModelNotFound
from protocol.membership import Membership, ReplicaInfo, ServedModel
from protocol.messages import Identity
from protocol.model_source import ModelSource, resolve_model
from router.http.catalog import Catalog
from router.http.request_sampling import SamplingDefaults
from router.models.model_files import ModelFiles
from router.models.served_models import ServedModels
from router.text.tokenizer import Tokenizer


@lru_cache(1)
def sapling_tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(resolve_model("sapling").directory)


@dataclass
class Reader:
    """Every source is a model, but those in `broken`; one in `gates` is read once its gate is open."""

    broken: set[str] = field(default_factory=set)
    gates: dict[str, threading.Event] = field(default_factory=dict)

    def __call__(self, served: ServedModel) -> ModelFiles:
        if served.source in self.gates:
            assert self.gates[served.source].wait(30), "the test never opened the gate"
        if served.source in self.broken:
            raise ModelNotFound(f"there is no {served.source}")
        source = ModelSource(served.name, Path(), f"{served.source}-digest", "tokenizer-digest", "", 4096)
        return ModelFiles(source, sapling_tokenizer(), SamplingDefaults())


@dataclass
class Stage:
    models: ServedModels
    catalog: Catalog
    reader: Reader
    make_replica: Callable[..., Awaitable[Any]]
    versions: dict[str, str] = field(default_factory=dict)  # that each replica serves

    async def replica(self, served: ServedModel, replica_id: str, **knobs: Any) -> Any:
        """A fake replica of this version, which the membership does not name yet."""
        identity = Identity(served.name, f"{served.source}-digest", "tokenizer-digest")
        self.versions[replica_id] = served.version
        return await self.make_replica(replica_id, **{"identity": identity, **knobs})

    def info(self, replica: Any, **changes: Any) -> ReplicaInfo:
        info: ReplicaInfo = replica.info(serves=self.versions[replica.replica_id], **changes)
        return info

    async def follow(self, *models: ServedModel, replicas: Any = ()) -> None:
        """The membership names these; returns when all of them are loaded. Raises why none of them can be."""
        await self.follow_later(*models, replicas=replicas)
        await self.models.begun()

    async def follow_later(self, *models: ServedModel, replicas: Any = ()) -> None:
        """The same, but what cannot be loaded is left."""
        infos = [each if isinstance(each, ReplicaInfo) else self.info(each) for each in replicas]
        await self.models.follow(Membership(1, tuple(infos), models))
        while any(self.models._loads):
            await asyncio.sleep(0.002)

    def accepting(self, name: str) -> int:
        """Replicas of the version that the name stands for."""
        return self.catalog.current(name).router.num_accepting


@pytest.fixture
async def stage(
    secrets: DeploymentSecrets, make_replica: Callable[..., Awaitable[Any]]
) -> AsyncIterator[Stage]:
    catalog, reader = Catalog(), Reader()
    models = ServedModels("router-0", secrets, catalog, reader)
    yield Stage(models, catalog, reader, make_replica)
    await models.aclose()


@pytest.fixture
def model() -> Callable[..., ServedModel]:
    """`model("m")`, or `model("m", "m-2", current=False)`: its files are called as its version is."""

    def make(name: str = "m", version: str = "", **more: Any) -> ServedModel:
        return ServedModel(name, version or f"{name}-1", version or f"{name}-1", **more)

    return make
