"""A replica's data plane over a real socket, an engine with the real scheduler, and a runner that only counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from protocol.block_hash import SECRET_BYTES, BlockHasher
from protocol.codec import decode, encode
from protocol.frames import frame, read_frame
from protocol.handshake import ReplicaFacts, greet_replica
from protocol.messages import Identity, Ping, Pong, SequenceOutput, SnapshotChunk, StepFrame, Submit
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens, unpack_tokens
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer
from workers.step_plan import SampledTokens, StepPlan

KEY = b"k" * 32
SECRET = bytes(SECRET_BYTES)
BLOCK_SIZE = 4
IDENTITY = Identity("count", "model", "tokenizer")
T = TypeVar("T")


@dataclass
class CountingRunner:
    """The next token is the last one plus one. `gate` holds steps back from `holds_from` on, `fails_at` breaks one."""

    facts: RunnerFacts = field(default_factory=lambda: RunnerFacts(128, BLOCK_SIZE, 256, 1000, (0,)))
    gate: threading.Event = field(default_factory=threading.Event)
    holds_from: int = 0
    fails_at: int | None = None
    closed: bool = False
    newest: dict[int, int] = field(default_factory=dict)  # token of each row

    def __post_init__(self) -> None:
        self.gate.set()

    def launch(self, plan: StepPlan) -> SampledTokens:
        assert plan.step < self.holds_from or self.gate.wait(30), "the test never opened the gate"
        if self.fails_at is not None and plan.step >= self.fails_at:
            raise RuntimeError("the device is on fire")
        return SampledTokens(self._count_on(plan))

    def _count_on(self, plan: StepPlan) -> list[int]:
        last = {chunk.row: unpack_tokens(chunk.token_ids)[-1] for chunk in plan.chunks if chunk.sample}
        rows = [*unpack_tokens(plan.decode_rows), *last]
        self.newest.update(last)
        for row in rows:
            self.newest[row] += 1
        return [self.newest[row] for row in rows]

    def close(self) -> None:
        self.closed = True


class FakeRouter:
    """The other end of the socket, one message at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.rows = TokenRows()

    def send(self, message: object) -> None:
        self.writer.write(frame(encode(message)))

    async def receive(self) -> Any:
        async with asyncio.timeout(20):
            payload = await read_frame(self.reader)
        message = None if payload is None else decode(payload)
        return self._expanded(message) if isinstance(message, StepFrame) else message

    def _expanded(self, step: StepFrame) -> StepFrame:
        """With every token in its outputs."""
        outputs = self.rows.expand(step.outputs, unpack_tokens(step.rows), unpack_tokens(step.tokens))
        return replace(step, outputs=tuple(outputs), rows=b"", tokens=b"")

    async def until(self, kind: type[T], accept: Callable[[T], bool] = lambda message: True) -> T:
        """The next message of a kind that is accepted; others are passed over."""
        while True:
            message = await self.receive()
            assert message is not None, "the replica closed the connection"
            if isinstance(message, kind) and accept(message):
                return message

    async def snapshot(self) -> bytes:
        digests = b""
        while True:
            chunk = await self.until(SnapshotChunk)
            digests += chunk.digests
            if chunk.last:
                return digests

    async def outputs_of(self, request_id: str) -> list[SequenceOutput]:
        """Everything of one request of one sequence, up to its end."""
        outputs: list[SequenceOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            step = await self.until(StepFrame)
            outputs += [output for output in step.outputs if output.request_id == request_id]
        return outputs

    async def heard(self) -> None:
        """Everything sent so far has reached the replica."""
        self.send(Ping(0))
        await self.until(Pong)


@dataclass
class Replica:
    server: ReplicaServer
    engine: Engine
    runner: CountingRunner
    deaths: list[str]

    @asynccontextmanager
    async def router(self, name: str = "router-0", key: bytes = KEY) -> AsyncIterator[FakeRouter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            await greet_replica(reader, writer, key, name, IDENTITY)
            yield FakeRouter(reader, writer)
        finally:
            writer.close()


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner()


@pytest.fixture
async def replica(runner: CountingRunner) -> AsyncIterator[Replica]:
    engine = Engine(runner, SchedulerConfig(), BlockHasher(SECRET, BLOCK_SIZE))
    facts = ReplicaFacts("replica-0", 1, IDENTITY, 256, 128)
    deaths: list[str] = []
    async with ReplicaServer(engine, KEY, facts, "127.0.0.1", deaths.append) as server:
        yield Replica(server, engine, runner, deaths)
        runner.gate.set()


@pytest.fixture
def submit() -> Callable[..., Submit]:
    def build(
        request_id: str = "r", prompt: range = range(10, 20), max_tokens: int = 3, **more: Any
    ) -> Submit:
        return Submit(request_id, pack_tokens(prompt), SamplingParams(max_tokens=max_tokens, seed=0, **more))

    return build
