"""The controller's memory outside its process: wanted state, secrets, and what it has launched.

Kept in the key-value store of Ray's head, in this deployment's namespace, so that a controller restarted on any node
adopts what runs, and with the same secrets: no cache is blinded. Written before a launch, removed when all is gone.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from ray.experimental import internal_kv

from controller.config import DeploymentConfig
from controller.names import NAMESPACE
from controller.unit import UnitFacts, UnitRecord
from protocol.deployment_secrets import DeploymentSecrets
from protocol.membership import Event, ServedModel, WorkerInfo

_KEY = b"deployment"


@dataclass(frozen=True, slots=True)
class DeploymentState:
    config: DeploymentConfig
    secrets: DeploymentSecrets = field(repr=False)
    units: tuple[UnitRecord, ...] = ()
    stop_grace_s: float | None = None  # None: it is to run
    previous: DeploymentConfig | None = None  # what an upgrade under way goes back to
    upgrade_error: str = ""  # why the last one was taken back
    events: tuple[Event, ...] = ()
    retired: Mapping[str, int] = field(default_factory=dict)  # last incarnation of names that are not in use

    def to_json(self) -> bytes:
        keys = {each.name: getattr(self.secrets, each.name) for each in fields(self.secrets)}
        record = {
            "config": self.config.model_dump(mode="json"),
            "secrets": {name: base64.b64encode(value).decode() for name, value in keys.items()},
            "units": [asdict(unit) for unit in self.units],
            "stop_grace_s": self.stop_grace_s,
            "previous": None if self.previous is None else self.previous.model_dump(mode="json"),
            "upgrade_error": self.upgrade_error,
            "retired": dict(self.retired),
            "events": [asdict(event) for event in self.events],
        }
        return json.dumps(record).encode()

    @classmethod
    def from_json(cls, data: bytes) -> DeploymentState:
        record = json.loads(data)
        keys = {name: base64.b64decode(value) for name, value in record["secrets"].items()}
        previous = record["previous"]
        return cls(
            DeploymentConfig.model_validate(record["config"]),
            DeploymentSecrets(**keys),
            tuple(_unit(each) for each in record["units"]),
            record["stop_grace_s"],
            None if previous is None else DeploymentConfig.model_validate(previous),
            record["upgrade_error"],
            tuple(Event(**event) for event in record["events"]),
            record["retired"],
        )


def _unit(record: dict[str, Any]) -> UnitRecord:
    facts, serves = record["facts"], record["serves"]
    if facts is not None:
        workers = tuple(
            WorkerInfo(**{**worker, "devices": tuple(worker["devices"])}) for worker in facts["workers"]
        )
        facts = UnitFacts(facts["host"], facts["port"], workers)
    served = None if serves is None else ServedModel(**serves)
    return UnitRecord(**{**record, "facts": facts, "serves": served})


class Store(Protocol):
    """Where the one `DeploymentState` is kept."""

    async def load(self) -> DeploymentState | None: ...

    async def save(self, state: DeploymentState) -> None: ...

    async def remove(self) -> None: ...


class RayStore:
    """Blocking calls of a millisecond, made off the event loop."""

    async def load(self) -> DeploymentState | None:
        data = await asyncio.to_thread(internal_kv._internal_kv_get, _KEY, namespace=NAMESPACE.encode())
        return None if data is None else DeploymentState.from_json(data)

    async def save(self, state: DeploymentState) -> None:
        await asyncio.to_thread(
            internal_kv._internal_kv_put, _KEY, state.to_json(), overwrite=True, namespace=NAMESPACE.encode()
        )

    async def remove(self) -> None:
        await asyncio.to_thread(self.remove_now)

    def remove_now(self) -> None:
        internal_kv._internal_kv_del(_KEY, namespace=NAMESPACE.encode())
