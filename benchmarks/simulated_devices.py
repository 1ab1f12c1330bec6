"""Replicas and routers of the product in this process, on devices that only take time: a step sleeps as a model says.

Used by `replay.py` where a real model would measure the machine rather than the system. Everything else is real: the
routers' core, sockets, engines, schedulers. What a model would have said is made up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from protocol.block_hash import BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import Identity
from protocol.sampling import SamplingParams
from router.requests.routed_request import RoutedRequest
from router.router import Router
from router.router_config import RouterConfig
from simulator.measurement import MeasuredDeployment, MeasuredReplica, MeasuredRequest
from simulator.prompts import VOCABULARY, Prompts
from simulator.service_model import ServiceModel
from simulator.simulation import DEFAULT_MODEL
from simulator.trace import BLOCK_TOKENS, TraceRequest
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer
from workers.step_plan import SampledTokens, StepPlan

IDENTITY = Identity("modelled", "no weights", "no tokenizer")
MOST_TOKENS = 1_000_000  # of a context
READY_TIMEOUT_S = 10.0
DRAWN_TOKEN = 400  # a piece of a word in the built-in tokenizer, so that an endpoint has text to send


@dataclass(frozen=True)
class ModelledSystem:
    """`policy` is `trunkline`, or `round-robin`: a router for each replica, asked in turn."""

    replicas: int = 2
    block_size: int = 64
    num_blocks: int = 8_000
    model: ServiceModel = DEFAULT_MODEL
    policy: str = "trunkline"
    max_num_batched_tokens: int = 2048


class ModelledRunner:
    def __init__(self, facts: RunnerFacts, model: ServiceModel) -> None:
        self.facts = facts
        self._model = model

    def launch(self, plan: StepPlan) -> ModelledStep:
        return ModelledStep(time.monotonic() + self._model.plan_s(plan), plan.num_drawn)

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelledStep:
    ends_s: float
    num_drawn: int

    def wait(self) -> SampledTokens:
        time.sleep(max(0.0, self.ends_s - time.monotonic()))
        return SampledTokens([DRAWN_TOKEN] * self.num_drawn)


class RunningRouters:
    def __init__(self, system: ModelledSystem, routers: list[Router]) -> None:
        self._system = system
        self._routers = routers
        self._prompts = Prompts(BLOCK_TOKENS, system.block_size)

    async def replay(
        self, requests: Sequence[TraceRequest]
    ) -> tuple[tuple[MeasuredRequest, ...], MeasuredDeployment]:
        """Each at its time. The replicas are asked at the last arrival: what they have learnt fades when load ends."""
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            running = []
            for request in requests:
                await asyncio.sleep(max(0.0, started_s + request.arrival_s - time.monotonic()))
                running.append(group.create_task(self._measured(request, started_s)))
            facts = self._facts()
        measured = sorted((each.result() for each in running), key=lambda each: each.arrival_s)
        return tuple(measured), facts

    async def _measured(self, request: TraceRequest, started_s: float) -> MeasuredRequest:
        router = self._routers[request.index % len(self._routers)]
        sampling = SamplingParams(max_tokens=request.num_output_tokens, ignore_eos=True, seed=0)
        routed = RoutedRequest(str(request.index), self._prompts.of(request).tokens, sampling)
        began_s = time.monotonic()
        async with router.open(routed) as generation:
            first = await anext(generation)
            first_s = time.monotonic()
            async for _ in generation:
                pass
            return MeasuredRequest(
                arrival_s=began_s - started_s,
                num_tokens=request.num_tokens,
                num_output_tokens=request.num_output_tokens,
                cached_tokens=first.num_cached_tokens,
                replica=generation.decision.replica,
                ttft_s=first_s - began_s,
                end_to_end_s=time.monotonic() - began_s,
                blocks=request.blocks,
            )

    def _facts(self) -> MeasuredDeployment:
        system = self._system
        statuses = [status for router in self._routers for status in router.status().replicas]
        loads = {status.replica_id: status.load for status in statuses}
        return MeasuredDeployment(
            model=IDENTITY.model,
            policy=system.policy,
            block_size=system.block_size,
            num_blocks=system.num_blocks,
            max_num_seqs=system.model.max_running,
            max_num_batched_tokens=system.max_num_batched_tokens,
            replicas=tuple(
                MeasuredReplica(name, load.speeds) for name, load in loads.items() if load is not None
            ),
        )


@asynccontextmanager
async def modelled_system(system: ModelledSystem) -> AsyncIterator[RunningRouters]:
    """Ready once it has been entered."""
    secrets = DeploymentSecrets.generate()
    async with AsyncExitStack() as stack:
        members = [await _member(system, secrets, f"replica-{n}", stack) for n in range(system.replicas)]
        groups = [members] if system.policy == "trunkline" else [[member] for member in members]
        routers = [Router(RouterConfig(f"router-{n}"), IDENTITY, secrets) for n in range(len(groups))]
        for router, group in zip(routers, groups, strict=True):
            stack.push_async_callback(router.aclose)
            await router.set_replicas(group)
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not all(each.connected for router in routers for each in router.status().replicas):
                await asyncio.sleep(0.01)
        yield RunningRouters(system, routers)


async def _member(
    system: ModelledSystem, secrets: DeploymentSecrets, name: str, stack: AsyncExitStack
) -> ReplicaInfo:
    hasher = BlockHasher(secrets.hash_secret, system.block_size)
    facts = RunnerFacts(system.num_blocks + 1, system.block_size, MOST_TOKENS, VOCABULARY, ())
    config = SchedulerConfig(system.model.max_running, system.max_num_batched_tokens)
    engine = Engine(ModelledRunner(facts, system.model), config, hasher)
    identity = replace(IDENTITY, block_size=system.block_size, hash_fingerprint=hasher.fingerprint)
    told = ReplicaFacts(name, 1, identity, facts.max_model_len, facts.num_blocks)
    server = await stack.enter_async_context(ReplicaServer(engine, secrets.hello_key, told, "127.0.0.1"))
    return ReplicaInfo(name, ReplicaState.READY, 1, "127.0.0.1", server.port)
