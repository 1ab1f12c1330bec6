"""Real replica servers, engines and caches; only the model is arithmetic (last token + 1). And wires to tamper with."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import Identity, Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens, unpack_tokens
from router.router import Router
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer
from workers.step_plan import SampledTokens, StepPlan

IDENTITY = Identity("model", "model-digest", "tokenizer-digest")
BLOCK_SIZE = 4
MAX_MODEL_LEN = 100_000


class CountingRunner:
    """The next token is the last one plus one. `num_computed`: prompt tokens that steps really ran."""

    def __init__(self, num_blocks: int) -> None:
        self.facts = RunnerFacts(num_blocks, BLOCK_SIZE, MAX_MODEL_LEN, 1_000_000, (0,))
        self.num_computed = 0
        self.newest: dict[int, int] = {}  # token of each row
        self.gate = threading.Event()  # closed, it holds every step back
        self.gate.set()
        self.step_s = 0.0  # how long a step takes, at least

    def launch(self, plan: StepPlan) -> SampledTokens:
        assert self.gate.wait(30), "the test never opened the gate"
        time.sleep(self.step_s)
        self.num_computed += sum(len(unpack_tokens(chunk.token_ids)) for chunk in plan.chunks)
        last = {chunk.row: unpack_tokens(chunk.token_ids)[-1] for chunk in plan.chunks if chunk.sample}
        rows = [*unpack_tokens(plan.decode_rows), *last]
        self.newest.update(last)
        for row in rows:
            self.newest[row] += 1
        return SampledTokens([self.newest[row] for row in rows])

    def close(self) -> None: ...


@dataclass
class EngineReplica:
    replica_id: str
    server: ReplicaServer
    engine: Engine
    runner: CountingRunner
    incarnation: int

    def on_step_thread(self, command: Callable[[Engine], None]) -> None:
        self.server._steps.post(command)

    def info(self, port: int | None = None) -> ReplicaInfo:
        where = self.server.port if port is None else port
        return ReplicaInfo(self.replica_id, ReplicaState.READY, self.incarnation, "127.0.0.1", where)


@pytest.fixture
def make_engine(secrets: DeploymentSecrets) -> Callable[[int, int], tuple[Engine, CountingRunner]]:
    def make(num_blocks: int, step_tokens: int) -> tuple[Engine, CountingRunner]:
        hasher, runner = BlockHasher(secrets.hash_secret, BLOCK_SIZE), CountingRunner(num_blocks)
        return Engine(runner, SchedulerConfig(max_num_batched_tokens=step_tokens), hasher), runner

    return make


@pytest.fixture
async def make_engine_replica(
    secrets: DeploymentSecrets, make_engine: Callable[[int, int], tuple[Engine, CountingRunner]]
) -> AsyncIterator[Callable[..., Awaitable[EngineReplica]]]:
    """`await make_engine_replica("a", warm=[prompt, ...])`: has computed these prompts before it listens."""
    servers: list[ReplicaServer] = []

    async def make(
        replica_id: str,
        num_blocks: int = 512,
        step_tokens: int = 64,
        warm: Iterable[Sequence[int]] = (),
        step_s: float = 0.0,
        incarnation: int = 1,
    ) -> EngineReplica:
        hasher = BlockHasher(secrets.hash_secret, BLOCK_SIZE)
        engine, runner = make_engine(num_blocks, step_tokens)
        for number, prompt in enumerate(warm):
            sampling = SamplingParams(max_tokens=1, seed=1)
            engine.submit(Submit(f"warm-{number}", pack_tokens(prompt), sampling))
        while engine.has_work:
            engine.step()
        runner.step_s = step_s
        identity = replace(IDENTITY, block_size=BLOCK_SIZE, hash_fingerprint=hasher.fingerprint)
        facts = ReplicaFacts(replica_id, incarnation, identity, MAX_MODEL_LEN, num_blocks)
        server = ReplicaServer(engine, secrets.hello_key, facts, "127.0.0.1")
        await server.__aenter__()
        servers.append(server)
        return EngineReplica(replica_id, server, engine, runner, incarnation)

    yield make
    for server in servers:
        await server.aclose()


@dataclass
class Wire:
    """A TCP relay in front of one replica: counts what the replica says and, paused, lets a router read nothing."""

    port: int
    num_bytes: int = 0
    num_ended: int = 0
    unpaused: asyncio.Event = field(default_factory=asyncio.Event)
    listening: asyncio.Server | None = None
    to_replica: asyncio.StreamWriter | None = None  # of the newest connection

    async def start(self) -> None:
        self.unpaused.set()
        self.listening = await asyncio.start_server(self._relay, "127.0.0.1", 0)

    @property
    def own_port(self) -> int:
        assert self.listening is not None
        return int(self.listening.sockets[0].getsockname()[1])

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_replica, self.to_replica = await asyncio.open_connection("127.0.0.1", self.port)
        copies = [self._copy(reader, self.to_replica), self._copy(from_replica, writer, counted=True)]
        tasks = [asyncio.create_task(copy) for copy in copies]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the stream server has no use for it
        finally:
            self.num_ended += 1
            for task in tasks:
                task.cancel()
            for end in (writer, self.to_replica):
                end.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool = False
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if counted:
                    await self.unpaused.wait()
                    self.num_bytes += len(data)
                writer.write(data)
                await writer.drain()

    async def aclose(self) -> None:
        assert self.listening is not None
        self.listening.close()
        if self.to_replica is not None:
            self.to_replica.transport.abort()
        self.unpaused.set()


@pytest.fixture
async def make_wire() -> AsyncIterator[Callable[[EngineReplica], Awaitable[Wire]]]:
    wires: list[Wire] = []

    async def make(replica: EngineReplica) -> Wire:
        wire = Wire(replica.server.port)
        await wire.start()
        wires.append(wire)
        return wire

    yield make
    for wire in wires:
        await wire.aclose()


@pytest.fixture
def answer() -> Callable[[Router, Any], Awaitable[list[int]]]:
    """All tokens of a request's one sequence."""

    async def answer(router: Router, request: Any) -> list[int]:
        async with router.open(request) as generation:
            return [token async for output in generation for token in output.token_ids]

    return answer


@pytest.fixture
def caught_up(eventually: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Every router has heard of everything that the replicas have done; nothing runs any more."""

    async def wait(routers: Sequence[Router], replicas: Sequence[EngineReplica]) -> None:
        def all_known() -> bool:
            held = {each.replica_id: len(each.engine.snapshot()) // 16 for each in replicas}
            return not any(each.engine.has_work for each in replicas) and all(
                status.num_indexed_blocks == held[status.replica_id] and not status.num_live_requests
                for router in routers
                for status in router.status().replicas
            )

        await eventually(all_known)

    return wait


@pytest.fixture
def turns() -> Callable[[int], Iterable[list[int]]]:
    """Prompts of many conversations under a few system prompts, each turn continuing the one before it."""

    def make(num_turns: int) -> Iterable[list[int]]:
        dice, open_ones = random.Random(7), list[list[int]]()
        for _ in range(num_turns):
            if not open_ones or dice.random() < 0.25:
                head = dice.randrange(4)
                open_ones.append([100_000 * (head + 1) + n for n in range(40 + 20 * head)])
            talk = dice.choice(open_ones[-12:])
            talk += [dice.randrange(1000, 99_000) for _ in range(dice.randrange(8, 60))]
            yield list(talk)

    return make
