"""A slim Ray for this folder, actors with the surface of ours and no model behind, and a launcher without Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from controller.config import DeploymentConfig
from controller.config_file import build_config
from controller.controller import Controller
from controller.state import DeploymentState
from controller.unit import Launched, Launcher, StartFailed, Tell, UnitFacts, UnitRecord
from controller.wanted import served_model
from protocol.demand import RouterDemand
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import UnsupportedModel
from protocol.membership import WorkerInfo
from router.launch import RouterLaunch
from workers.worker_config import Rendezvous, WorkerAddress, WorkerConfig

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a conftest
PATIENCE_S = 30.0


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One for all tests; a Ray of somebody else's on this machine is neither joined nor disturbed."""
    from controller.local_ray import SLIM

    root = str(Path(__file__).resolve().parents[2])
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**SLIM, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": root}.items():
            environment.setenv(name, value)
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=8,
            namespace="trunkline",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
        ray.shutdown()


class FakeWorkerActor:
    """Obeys files in `directory`: `hopeless` and `crash` fail its start; a file of its name ends its `run`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._directory = Path(config.engine.model)
        self._ended = threading.Event()
        self._trace: str | None = None

    def info(self) -> WorkerInfo:
        """On the device of its number, or the other way round in a folder that says so."""
        backwards = (self._directory / "backwards").exists()
        place = int(ray.get_runtime_context().get_actor_name()[-1])
        node = ray.get_runtime_context().get_node_id()
        return WorkerInfo(self._config.rank, os.getpid(), node, (9 - place if backwards else place,))

    def take_rank(self, rank: int) -> None:
        self._config = replace(self._config, rank=rank)

    def rendezvous(self) -> Rendezvous:
        assert self._config.rank == 0
        return Rendezvous("127.0.0.1", 1, 2)

    def start(self, rendezvous: Rendezvous | None) -> WorkerAddress | None:
        assert (rendezvous is not None) == (self._config.engine.tensor_parallel_size > 1)
        if (self._directory / "hopeless").exists():
            raise UnsupportedModel("this model cannot be served")
        if (self._directory / "crash").exists():
            raise RuntimeError("the first start is bound to fail")
        return WorkerAddress("127.0.0.1", 1000) if self._config.rank == 0 else None

    def loading(self, beyond: int) -> int:
        return 100

    def run(self) -> None:
        self._ended.wait()
        if self._trace is not None:
            raise RuntimeError(self._trace)

    def fail(self, trace: str) -> None:
        self._trace = trace
        self._ended.set()

    def threads(self) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    def stop(self, grace_s: float) -> None:
        (self._directory / f"stopped-{self._config.replica_id}").touch()
        self._ended.set()


class FakeRouterActor:
    def __init__(self, launch: RouterLaunch) -> None:
        self._launch = launch
        self._ended = threading.Event()

    def info(self) -> WorkerInfo:
        return WorkerInfo(0, os.getpid(), ray.get_runtime_context().get_node_id())

    def address(self) -> tuple[str, int]:
        return self._launch.host, self._launch.port

    def run(self) -> None:
        self._ended.wait()

    def drain(self, grace_s: float) -> None:
        pass

    def demand(self) -> tuple[RouterDemand, ...]:
        return ()

    def own_blocks(self) -> tuple[tuple[str, int], ...]:
        return ()

    def meet(self, replica: str, incarnation: int) -> str:
        return ""

    def drain_replica(self, replica: str, deadline_s: float) -> bool:
        return True

    def close(self) -> None:
        self._ended.set()


@pytest.fixture
def fake_actors() -> tuple[type, type]:
    return FakeWorkerActor, FakeRouterActor


@pytest.fixture
def fake_config(tmp_path: Path) -> Callable[..., DeploymentConfig]:
    """Of a deployment whose workers obey files in the test's folder."""

    def make(**keys: Any) -> DeploymentConfig:
        return build_config({"model": str(tmp_path), "worker": {"num_cpus": 0.5}, **keys})

    return make


@dataclass
class FakeUnit:
    """An incarnation whose fate the test decides."""

    name: str
    log: list[str]
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    died: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    start_error: StartFailed | None = None
    drain_forever: bool = False

    async def start(self, tell: Tell) -> UnitFacts:
        tell("warms up")
        await self.ready.wait()
        if self.start_error is not None:
            raise self.start_error
        return facts_of(self.name)

    async def watch(self) -> str:
        return await asyncio.shield(self.died)

    async def drain(self, grace_s: float) -> None:
        self.log.append(f"drain {self.name}")
        if self.drain_forever:
            await asyncio.Event().wait()

    async def kill(self) -> None:
        self.log.append(f"kill {self.name}")


def set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeRouterUnit(FakeUnit):
    occupied: asyncio.Event | None = None  # set: its requests on a replica have ended or moved
    told: RouterDemand | None = field(default_factory=RouterDemand)
    versions: set[str] = field(default_factory=set)  # of the launcher's scene
    own: dict[str, int] = field(default_factory=dict)  # blocks, by replica
    refusals: dict[str, str] = field(default_factory=dict)  # why it takes an incarnation never
    meeting: asyncio.Event = field(default_factory=set_event)  # cleared: it takes none

    async def demand(self) -> tuple[RouterDemand, ...]:
        """Of the one model of these scenes, whatever its version."""
        return tuple(replace(self.told, version=version) for version in self.versions) if self.told else ()

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        return tuple(self.own.items())

    async def meet(self, replica: str, incarnation: int) -> str:
        await self.meeting.wait()
        return self.refusals.get(f"{replica}.{incarnation}", "")

    async def vacate(self, replica: str, grace_s: float) -> None:
        self.log.append(f"{self.name} vacates {replica}")
        if self.occupied is not None:
            await self.occupied.wait()


def facts_of(name: str) -> UnitFacts:
    return UnitFacts("127.0.0.1", 1000, (WorkerInfo(0, len(name), "node"),))


class FakeLauncher:
    """Keeps every incarnation by its name, `unit.incarnation`. `whole`: what a new controller can adopt."""

    def __init__(self) -> None:
        self.units: dict[str, FakeUnit] = {}
        self.log: list[str] = []
        self.whole: set[str] = set()
        self.fails: dict[str, StartFailed] = {}
        self.held: set[str] = set()
        self.alive_nodes: tuple[str, ...] = ()
        self.models: dict[str, str] = {}  # what each incarnation was launched for
        self.versions: set[str] = set()

    async def nodes(self) -> tuple[str, ...]:
        return self.alive_nodes

    def launch(self, unit: str, incarnation: int, model: str) -> Launched:
        made = self._make(f"{unit}.{incarnation}")
        self.models[made.name] = model
        made.start_error = self.fails.get(made.name)
        if made.name not in self.held:
            made.ready.set()
        return made

    async def adopt(self, record: UnitRecord, facts: UnitFacts) -> Launched | None:
        name = f"{record.unit}.{record.incarnation}"
        return self._make(name) if name in self.whole else None

    async def sweep(self, keep: Sequence[UnitRecord]) -> None:
        self.log.append(f"sweep but {sorted(record.unit for record in keep)}")

    def _make(self, name: str) -> FakeUnit:
        if name.startswith("router"):
            self.units[name] = FakeRouterUnit(name, self.log, versions=self.versions)
        else:
            self.units[name] = FakeUnit(name, self.log)
        return self.units[name]


class MemoryStore:
    def __init__(self) -> None:
        self.state: DeploymentState | None = None

    async def load(self) -> DeploymentState | None:
        return self.state

    async def save(self, state: DeploymentState) -> None:
        self.state = DeploymentState.from_json(state.to_json())

    async def remove(self) -> None:
        self.state = None


class Scene:
    """A controller without Ray, run as a task; its clock is the test's."""

    def __init__(self) -> None:
        self.launcher = FakeLauncher()
        self.store = MemoryStore()
        self.now_s = 1000.0
        self.secrets = DeploymentSecrets.generate()
        self.controller: Controller
        self.running: asyncio.Task[None]

    def start(self, **keys: Any) -> None:
        config = build_config({"replicas": 1, **keys})
        state = DeploymentState(config, self.secrets)
        self.controller = Controller(state, self._launcher, self.store, lambda: self.now_s)
        self.running = asyncio.get_running_loop().create_task(self.controller.run())

    def _launcher(self, state: DeploymentState) -> Launcher:
        self.launcher.versions.clear()
        self.launcher.versions.update(served_model(model).version for model in state.config.models)
        return self.launcher

    async def settle(self) -> None:
        """Let everything that can happen now happen."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def crash(self) -> None:
        """The controller's process dies; what it launched goes on."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.launcher.whole = {
            name for name in self.launcher.units if not self.launcher.units[name].died.done()
        }
        self.launcher.log.clear()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def await_true(holds: Callable[[], bool], what: str) -> None:
    """For what another process does; a bound, not a measurement."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    return await_true
