"""A whole deployment in this process and without Ray, its replicas on devices that only take time.

The controller's loop, the router with its HTTP endpoint, sockets, engines and schedulers are the product's; a replica's
start is a sleep, and a step sleeps as a model says. So replicas beyond the machine's cores cost what they would cost.
Used by `autoscaling.py`. Everything lives in one event loop, but for the engines' threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from simulated_devices import ModelledRunner

from controller.autoscaling import Need, need_of
from controller.config import DeploymentConfig
from controller.controller import Controller
from controller.state import DeploymentState
from controller.status import DeploymentStatus
from controller.unit import Launched, Launcher, Tell, UnitFacts, UnitRecord
from controller.wanted import served_model
from protocol.block_hash import BlockHasher
from protocol.demand import RouterDemand
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.membership import Membership, WorkerInfo
from protocol.messages import Identity
from router.launch import RouterLaunch
from router.models.model_files import ModelFiles
from router.service import RouterService
from simulator.service_model import ServiceModel
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer

HOST = "127.0.0.1"
VOCABULARY = 2048  # of the built-in model, whose tokenizer the router has
CONTEXT_TOKENS = 4096
RETRY_AFTER_S = 0.05


@dataclass(frozen=True)
class Device:
    """What a replica runs on."""

    model: ServiceModel
    start_s: float = 8.0  # of Python, torch and the weights
    block_size: int = 64
    num_blocks: int = 4000


class ModelledReplica:
    def __init__(
        self, device: Device, facts: ReplicaFacts, config: SchedulerConfig, secrets: DeploymentSecrets
    ):
        self._device, self._facts, self._config, self._secrets = device, facts, config, secrets
        self._server: ReplicaServer | None = None

    async def start(self, tell: Tell) -> UnitFacts:
        tell("starts its process")
        await asyncio.sleep(self._device.start_s)
        device, secrets = self._device, self._secrets
        facts = RunnerFacts(device.num_blocks + 1, device.block_size, CONTEXT_TOKENS, VOCABULARY, ())
        hasher = BlockHasher(secrets.hash_secret, device.block_size)
        engine = Engine(ModelledRunner(facts, device.model), self._config, hasher)
        self._server = ReplicaServer(engine, secrets.hello_key, self._facts, HOST)
        await self._server.__aenter__()
        return UnitFacts(HOST, self._server.port, (WorkerInfo(0, 0, "here"),))

    async def watch(self) -> str:
        await asyncio.Event().wait()  # it dies of nothing
        raise AssertionError

    async def drain(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.drain(grace_s)

    async def kill(self) -> None:
        if self._server is not None:
            await self._server.aclose()


class LocalRouter:
    """As `RouterProcess`, without the process. `heard` is told what the controller is told of the demand."""

    def __init__(
        self,
        launch: RouterLaunch,
        memberships: AsyncIterator[Membership],
        heard: Callable[[Sequence[RouterDemand]], None],
    ) -> None:
        self._service = RouterService(launch, memberships)
        self._heard = heard
        self._running: asyncio.Task[None] | None = None

    async def start(self, tell: Tell) -> UnitFacts:
        self._running = asyncio.create_task(self._service.run())
        host, port = await asyncio.wrap_future(self._service.address)
        return UnitFacts(host, port, (WorkerInfo(0, 0, "here"),))

    async def watch(self) -> str:
        assert self._running is not None, "watched before it was started"
        await asyncio.wait([self._running])
        return "it has ended"

    async def drain(self, grace_s: float) -> None:
        await self._service.drain(grace_s)

    async def kill(self) -> None:
        self._service.close()
        if self._running is not None:
            await asyncio.wait([self._running])

    async def demand(self) -> tuple[RouterDemand, ...]:
        told = await self._service.demand()
        self._heard(told)
        return told

    async def own_blocks(self) -> tuple[tuple[str, int], ...]:
        return await self._service.own_blocks()

    async def meet(self, replica: str, incarnation: int) -> str:
        return await self._service.meet(replica, incarnation)

    async def vacate(self, replica: str, grace_s: float) -> None:
        while not await self._service.drain_replica(replica, grace_s):
            await asyncio.sleep(RETRY_AFTER_S)


class NoStore:
    """Of a controller that has no successor."""

    async def load(self) -> DeploymentState | None:
        return None

    async def save(self, state: DeploymentState) -> None: ...

    async def remove(self) -> None: ...


class ModelledDeployment:
    """Of one model. `async with`: its controller runs meanwhile, and everything is stopped at the end."""

    def __init__(self, config: DeploymentConfig, device: Device) -> None:
        (self._model,) = config.models
        self._device = device
        self._secrets = DeploymentSecrets.generate()
        self._identity = self._identity_of_replicas()
        self._controller = Controller(DeploymentState(config, self._secrets), self._launcher, NoStore())
        self._status: DeploymentStatus | None = None
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.need = Need(0.0)  # as the controller has last counted it

    async def __aenter__(self) -> ModelledDeployment:
        self._tasks = [asyncio.create_task(self._controller.run()), asyncio.create_task(self._follow())]
        await self.until(lambda status: bool(status.urls))
        return self

    async def __aexit__(self, *_: object) -> None:
        controller, following = self._tasks
        await self._controller.stop(5.0)
        await controller
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    @property
    def status(self) -> DeploymentStatus:
        assert self._status is not None, "entered, so something was heard"
        return self._status

    async def until(self, holds: Callable[[DeploymentStatus], bool]) -> None:
        while self._status is None or not holds(self._status):
            self._changed.clear()
            await self._changed.wait()

    def _identity_of_replicas(self) -> Identity:
        size = self._device.block_size
        fingerprint = BlockHasher(self._secrets.hash_secret, size).fingerprint
        identity = ModelFiles.read(served_model(self._model)).identity
        return replace(identity, block_size=size, hash_fingerprint=fingerprint)

    async def _follow(self) -> None:
        version = None
        while True:
            version, self._status = await self._controller.status(version)
            self._changed.set()

    def _launcher(self, state: DeploymentState) -> Launcher:
        return self  # whose configuration never changes but in its number of replicas

    # As a `Launcher`

    def launch(self, unit: str, incarnation: int, model: str) -> Launched:
        if not model:
            return LocalRouter(RouterLaunch(unit, HOST, 0, self._secrets), self._memberships(), self._hear)
        config = SchedulerConfig(self._model.max_num_seqs, self._model.max_num_batched_tokens)
        facts = ReplicaFacts(unit, incarnation, self._identity, CONTEXT_TOKENS, self._device.num_blocks)
        return ModelledReplica(self._device, facts, config, self._secrets)

    async def adopt(self, record: UnitRecord, facts: UnitFacts) -> Launched | None:
        return None

    async def nodes(self) -> tuple[str, ...]:
        return ()

    async def sweep(self, keep: Sequence[UnitRecord]) -> None: ...

    async def _memberships(self) -> AsyncIterator[Membership]:
        version: int | None = None
        while True:
            membership = await self._controller.membership(version)
            version = membership.version
            yield membership

    def _hear(self, demands: Sequence[RouterDemand]) -> None:
        self.need = need_of(demands, self._model.max_num_seqs)
