"""One tenant floods real engines behind a real router; what another notices is counted in the engines' steps."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import Identity
from router.router import Router
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer
from workers.step_plan import SampledTokens, StepPlan

Make = Callable[..., Awaitable[Any]]
IDENTITY = Identity("model", "model-digest", "tokenizer-digest")
BLOCK_SIZE = 16
STEP_TOKENS = 64
LIGHT_TOKENS = 25 * STEP_TOKENS
NUM_FLOODING = 100  # requests of the heavy tenant that are there at any time
STEP_S = 0.001  # so that steps, not messages, are what takes time


class SlowRunner:
    def __init__(self) -> None:
        self.facts = RunnerFacts(2048, BLOCK_SIZE, 4096, 100_000, ())
        self.num_steps = 0

    def launch(self, plan: StepPlan) -> SampledTokens:
        time.sleep(STEP_S)
        self.num_steps += 1
        return SampledTokens([1] * plan.num_drawn)

    def close(self) -> None: ...


@dataclass
class Replica:
    replica_id: str
    server: ReplicaServer
    runner: SlowRunner

    def info(self) -> ReplicaInfo:
        return ReplicaInfo(self.replica_id, ReplicaState.READY, 1, "127.0.0.1", self.server.port)


@pytest.fixture
async def replicas(secrets: DeploymentSecrets) -> AsyncIterator[list[Replica]]:
    made = []
    for name in "ab":
        hasher = BlockHasher(secrets.hash_secret, BLOCK_SIZE)
        runner = SlowRunner()
        engine = Engine(runner, SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=STEP_TOKENS), hasher)
        identity = replace(IDENTITY, block_size=BLOCK_SIZE, hash_fingerprint=hasher.fingerprint)
        facts = ReplicaFacts(name, 1, identity, runner.facts.max_model_len, runner.facts.num_blocks)
        server = ReplicaServer(engine, secrets.hello_key, facts, "127.0.0.1")
        await server.__aenter__()
        made.append(Replica(name, server, runner))
    yield made
    for replica in made:
        await replica.server.aclose()


async def steps_to_first_token(router: Router, replicas: list[Replica], request: Any) -> int:
    """Of the replica that it went to."""
    before = {replica.replica_id: replica.runner.num_steps for replica in replicas}
    async with router.open(request) as generation:
        async for _ in generation:
            break
        where = generation.replica
    after = {replica.replica_id: replica.runner.num_steps for replica in replicas}
    return after[where] - before[where]


@asynccontextmanager
async def flood(router: Router, make_request: Any) -> AsyncIterator[None]:
    """The heavy tenant: whenever a request of it has ended, the next one comes."""
    numbers = itertools.count(1)

    async def client() -> None:
        while True:
            first = next(numbers) % 900 * 100
            async with router.open(
                make_request(range(first, first + 60), max_tokens=8, tenant=b"heavy")
            ) as it:
                async for _ in it:
                    pass

    clients = [asyncio.create_task(client()) for _ in range(NUM_FLOODING)]
    yield
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


@pytest.mark.parametrize(("tenant", "num_asked", "is_spared"), [(b"light", 7, True), (b"heavy", 1, False)])
async def test_a_flood_does_not_double_anothers_steps_to_the_first_token(
    replicas: list[Replica],
    make_router: Make,
    make_request: Any,
    tenant: bytes,
    num_asked: int,
    is_spared: bool,
) -> None:
    router = await make_router(replicas)
    prompts = (range(first, first + LIGHT_TOKENS) for first in itertools.count(0, 3))

    async def median_steps() -> float:
        requests = [make_request(next(prompts), tenant=tenant) for _ in range(num_asked)]
        return median([await steps_to_first_token(router, replicas, each) for each in requests])

    alone = await median_steps()
    async with flood(router, make_request):
        await asyncio.sleep(0.2)
        flooded = await median_steps()
    assert (flooded <= 2.0 * alone) is is_spared
