"""The router's core against real replica servers and schedulers; only the model is arithmetic (last token + 1)."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import FatalRequest
from protocol.handshake import ReplicaFacts
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import Identity
from protocol.tokens import unpack_tokens
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer
from workers.step_plan import SampledTokens, StepPlan

Make = Callable[..., Awaitable[Any]]
IDENTITY = Identity("model", "model-digest", "tokenizer-digest")
BLOCK_SIZE = 4
FATAL = 666


class CountingRunner:
    """`stalls_at` holds back that step and the later ones until `released`; a prompt with FATAL is the engine's end."""

    def __init__(self, num_blocks: int, stalls_at: int | None) -> None:
        self.facts = RunnerFacts(num_blocks, BLOCK_SIZE, 256, 100_000, (0,))
        self.stalls_at = stalls_at
        self.released = threading.Event()
        self.newest: dict[int, int] = {}  # token of each row

    def launch(self, plan: StepPlan) -> SampledTokens:
        if any(FATAL in unpack_tokens(chunk.token_ids) for chunk in plan.chunks):
            raise RuntimeError("the device is on fire")
        if self.stalls_at is not None and plan.step >= self.stalls_at:
            assert self.released.wait(30), "the test never released the runner"
        return SampledTokens(self._count_on(plan))

    def _count_on(self, plan: StepPlan) -> list[int]:
        last = {chunk.row: unpack_tokens(chunk.token_ids)[-1] for chunk in plan.chunks if chunk.sample}
        rows = [*unpack_tokens(plan.decode_rows), *last]
        self.newest.update(last)
        for row in rows:
            self.newest[row] += 1
        return [self.newest[row] for row in rows]

    def close(self) -> None: ...


@dataclass
class Replica:
    replica_id: str
    server: ReplicaServer
    runner: CountingRunner

    def info(self) -> ReplicaInfo:
        return ReplicaInfo(self.replica_id, ReplicaState.READY, 1, "127.0.0.1", self.server.port)


@pytest.fixture
async def make_engine_replica(secrets: DeploymentSecrets) -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    servers: list[ReplicaServer] = []

    async def make(replica_id: str, num_blocks: int = 512, stalls_at: int | None = None) -> Replica:
        hasher = BlockHasher(secrets.hash_secret, BLOCK_SIZE)
        runner = CountingRunner(num_blocks, stalls_at)
        engine = Engine(runner, SchedulerConfig(max_num_batched_tokens=64), hasher)
        identity = replace(IDENTITY, block_size=BLOCK_SIZE, hash_fingerprint=hasher.fingerprint)
        facts = ReplicaFacts(replica_id, 1, identity, runner.facts.max_model_len, num_blocks)
        server = ReplicaServer(engine, secrets.hello_key, facts, "127.0.0.1")
        await server.__aenter__()
        servers.append(server)
        return Replica(replica_id, server, runner)

    yield make
    for server in servers:
        await server.aclose()


def conversation(dice: random.Random) -> list[int]:
    """One of a few heads, one of a few middles, and an end of its own, of any length."""
    head, middle = dice.randrange(3), dice.randrange(4)
    tokens = [1000 * (head + 1) + n for n in range(21)] + [
        10_000 * (middle + 1) + n for n in range(middle * 7)
    ]
    return tokens + [dice.randrange(50_000, 60_000) for _ in range(dice.randrange(1, 20))]


async def test_predicted_equals_actual_over_a_replay(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    replicas = [await make_engine_replica(name) for name in "abc"]
    router, dice = await make_router(replicas), random.Random(1)
    for _ in range(60):
        await answer(router, make_request(conversation(dice), max_tokens=dice.randrange(1, 9)))
    counters = router.counters
    assert counters.predicted_cached_tokens == counters.actual_cached_tokens > 0
    assert counters.resyncs == 0
    router._index.check_integrity()


async def test_predictions_hold_while_the_caches_evict(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router, dice = await make_router([await make_engine_replica("a", 32)]), random.Random(2)
    for _ in range(80):
        await answer(router, make_request(conversation(dice), max_tokens=4))
    assert router.counters.predicted_cached_tokens == router.counters.actual_cached_tokens > 0


async def test_a_crowd_over_a_killed_replica_gets_every_token_once(
    make_engine_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    replicas = [await make_engine_replica("a", stalls_at=20), await make_engine_replica("b")]
    router, dice = await make_router(replicas), random.Random(3)
    requests = [make_request(conversation(dice), max_tokens=60, n=1 + n % 3) for n in range(24)]
    asked = asyncio.gather(*(answer(router, request) for request in requests))
    await eventually(lambda: router.status().replicas[0].num_live_requests > 3)
    closing = asyncio.create_task(replicas[0].server.aclose())
    await eventually(lambda: replicas[0].server.stopping)
    replicas[0].runner.released.set()
    await closing
    for request, answered in zip(requests, await asked, strict=True):
        last = int.from_bytes(request.token_ids[-4:], "little")
        assert answered == [[last + n for n in range(1, 61)]] * request.sampling.n
    assert router.status().num_live_requests == 0 and router.counters.moves > 0
    router._index.check_integrity()


async def test_two_routers_share_the_replicas_and_know_what_the_other_made_cached(
    make_engine_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    replicas = [await make_engine_replica(name) for name in "ab"]
    one, other = await make_router(replicas), await make_router(replicas)
    await answer(one, make_request(range(1, 42)))
    await eventually(lambda: any(each.num_indexed_blocks >= 10 for each in other.status().replicas))
    await eventually(lambda: not any(each.load.num_running for each in other.status().replicas))
    async with other.open(make_request(range(1, 42))) as generation:
        assert generation.decision.matched_tokens == 40
        assert (await anext(generation)).num_cached_tokens == 40


async def test_leaving_frees_the_replicas_blocks(
    make_engine_replica: Make, make_router: Make, make_request: Any
) -> None:
    router = await make_router([await make_engine_replica("a")])
    async with router.open(make_request(range(1, 42), max_tokens=200)) as generation:
        await anext(generation)
    assert await router.reset_prefix_cache() == 0


async def test_a_fatal_prompt_in_a_crowd_ends_two_engines_and_no_other_request(
    make_engine_replica: Make, make_router: Make, make_request: Any, answer: Make
) -> None:
    router, dice = await make_router([await make_engine_replica(name) for name in "abc"]), random.Random(4)
    requests = [make_request(conversation(dice), max_tokens=20) for _ in range(30)]
    requests.insert(15, make_request([5, FATAL, 7], max_tokens=20))
    answers = await asyncio.gather(*(answer(router, each) for each in requests), return_exceptions=True)
    assert isinstance(answers.pop(15), FatalRequest)
    assert [len(each[0]) for each in answers] == [20] * 30
    assert sum(each.connected for each in router.status().replicas) == 1


async def test_an_engine_that_stands_still_loses_its_requests_and_frees_them_when_it_goes_on(
    make_engine_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    hung = await make_engine_replica("a", stalls_at=10)
    router = await make_router([hung], hang_timeout_s=0.5)
    asked = asyncio.gather(*(answer(router, make_request([n, n + 1], max_tokens=40)) for n in range(5)))
    await eventually(lambda: router.status().num_live_requests == 5)
    await router.set_replicas([hung.info(), (await make_engine_replica("b")).info()])
    assert await asked == [[list(range(n + 2, n + 42))] for n in range(5)]
    assert router.counters.hangs == 1 and not router.status().replicas[0].accepting
    hung.runner.released.set()
    await eventually(lambda: router.status().replicas[0].accepting)
    assert await router.reset_prefix_cache() == 0


async def test_a_crowd_over_a_drained_replica_gets_every_token_once(
    make_engine_replica: Make, make_router: Make, make_request: Any, eventually: Make, answer: Make
) -> None:
    replicas = [await make_engine_replica(name) for name in "ab"]
    router, dice = await make_router(replicas), random.Random(5)
    requests = [make_request(conversation(dice), max_tokens=60, n=1 + n % 3) for n in range(24)]
    asked = asyncio.gather(*(answer(router, request) for request in requests))
    await eventually(lambda: router.status().replicas[0].num_live_requests > 3)
    assert await router.drain_replica("a", 0.0)
    assert router.counters.moves > 0
    for request, answered in zip(requests, await asked, strict=True):
        last = int.from_bytes(request.token_ids[-4:], "little")
        assert answered == [[last + n for n in range(1, 61)]] * request.sampling.n
    assert await router.reset_prefix_cache() == 0
