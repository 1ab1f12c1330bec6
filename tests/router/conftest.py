"""Builders for the router's core, and `FakeReplica`: a replica's side of the data plane on a real socket.

The fake's model is arithmetic: token number k of sequence i is 1000 * i + k, so that a test can say exactly what a
stream must contain, whichever replicas it came from.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from protocol.block_hash import BlockHasher, join_digests, split_digests
from protocol.codec import decode, encode
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import ProtocolError
from protocol.events import Cleared, KvEvent, Removed, Stored
from protocol.frames import frame, read_frame
from protocol.handshake import ReplicaFacts, greet_router
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import (
    CacheReset,
    Cancel,
    FinishReason,
    Identity,
    Load,
    Ping,
    Pong,
    Rejected,
    ResetCache,
    Resync,
    SequenceOutput,
    SnapshotChunk,
    StepFrame,
    Submit,
    TokenLogprob,
)
from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES, pack_tokens, unpack_tokens
from router.requests.routed_request import RoutedRequest
from router.router import Router
from router.router_config import RouterConfig

BLOCK_SIZE = 4
IDENTITY = Identity("model", "model-digest", "tokenizer-digest")
SNAPSHOT_BLOCKS = 2  # a chunk: small, so that several are needed


@dataclass
class Running:
    """One request at the fake: `emitted` counts each sequence's tokens, those of an earlier replica included."""

    submit: Submit
    writer: asyncio.StreamWriter
    emitted: list[int]
    num_cached_tokens: int
    started: bool = False
    scored: bool = False
    stopped: set[int] = field(default_factory=set)


@dataclass
class FakeReplica:
    secrets: DeploymentSecrets
    replica_id: str = "a"
    incarnation: int = 1
    identity: Identity = IDENTITY
    block_size: int = BLOCK_SIZE
    num_blocks: int = 1024
    automatic: bool = True  # steps by itself while it has work
    answers_pings: bool = True
    sends_snapshot: bool = True
    reject_code: str | None = None
    reported_cached_tokens: int | None = None  # a lie
    die_after_tokens: int | None = None  # of the longest sequence
    fatal_token: int | None = None  # a prompt with it is the end of the first step that it is in
    load: Load = field(default_factory=lambda: Load(0, 0, 1024, 0, 0, 0))

    submits: list[Submit] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    stops: list[tuple[str, int]] = field(default_factory=list)  # of single sequences
    num_resyncs: int = 0
    num_connections: int = 0
    cache: list[bytes] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    step_number: int = 0
    refusals: list[str] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _address: tuple[str, int] = ("", 0)  # outlives the server: the membership may still name it
    _stepper: asyncio.Task[None] | None = None
    _handlers: set[asyncio.Task[None]] = field(default_factory=set)
    _work: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self._address = self._server.sockets[0].getsockname()
        self._stepper = asyncio.create_task(self._step_while_there_is_work())

    async def aclose(self) -> None:
        assert self._server is not None and self._stepper is not None
        self._server.close()
        self._stepper.cancel()
        self.cut()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(self._stepper, *self._handlers, return_exceptions=True)

    def info(self, state: ReplicaState = ReplicaState.READY, **changes: Any) -> ReplicaInfo:
        host, port = self._address
        return replace(ReplicaInfo(self.replica_id, state, self.incarnation, host, port), **changes)

    # Misbehaviour

    def cut(self) -> None:
        """Every connection ends without a word; what ran is gone."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()
        self.running.clear()

    async def die(self) -> None:
        """As kill -9 does it: connections cut, nobody listens any more."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def send_raw(self, data: bytes) -> None:
        for writer in self.writers:
            writer.write(data)

    def send(self, message: object) -> None:
        self.send_raw(frame(encode(message)))

    def stop_reading(self) -> None:
        for writer in self.writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

    # The data plane

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        try:
            await self._serve(reader, writer)
        except (ProtocolError, OSError) as error:
            self.refusals.append(str(error))
        except asyncio.CancelledError:
            pass  # `aclose`; the stream server has no use for it
        finally:
            if writer in self.writers:
                self.writers.remove(writer)
            for request_id, running in list(self.running.items()):
                if running.writer is writer:
                    del self.running[request_id]
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hasher = BlockHasher(self.secrets.hash_secret, self.block_size)
        identity = replace(self.identity, block_size=self.block_size, hash_fingerprint=hasher.fingerprint)
        facts = ReplicaFacts(self.replica_id, self.incarnation, identity, 4096, self.num_blocks)
        await greet_router(reader, writer, self.secrets.hello_key, facts)
        self.writers.append(writer)
        self.num_connections += 1
        self._send_snapshot(writer)
        while (payload := await read_frame(reader)) is not None:
            self._receive(decode(payload), writer)

    def _send_snapshot(self, writer: asyncio.StreamWriter) -> None:
        if self.sends_snapshot:
            for start in range(0, len(self.cache) + 1, SNAPSHOT_BLOCKS):
                some = self.cache[start : start + SNAPSHOT_BLOCKS]
                last = start + SNAPSHOT_BLOCKS > len(self.cache)
                writer.write(frame(encode(SnapshotChunk(self.step_number, join_digests(some), last))))

    def _receive(self, message: object, writer: asyncio.StreamWriter) -> None:
        match message:
            case Submit():
                self._submit(message, writer)
            case Cancel(request_id, None):
                self.cancels.append(request_id)
                self.running.pop(request_id, None)
            case Cancel(request_id, int(index)):
                self.stops.append((request_id, index))
                self.running[request_id].stopped.add(index)
            case Ping() if self.answers_pings:
                writer.write(frame(encode(Pong(message.number))))
            case Resync():
                self.num_resyncs += 1
                self._send_snapshot(writer)
            case ResetCache():
                self._reset(message, writer)
            case _:
                pass

    def _submit(self, submit: Submit, writer: asyncio.StreamWriter) -> None:
        self.submits.append(submit)
        if self.reject_code is not None:
            rejected = Rejected(submit.request_id, self.reject_code, "no", "prompt")
            writer.write(frame(encode(rejected)))
            return
        emitted = [len(each) // TOKEN_BYTES for each in submit.generated] or [0] * submit.sampling.n
        self.running[submit.request_id] = Running(submit, writer, emitted, self._cached_tokens(submit))
        self._work.set()

    def _cached_tokens(self, submit: Submit) -> int:
        if self.reported_cached_tokens is not None:
            return self.reported_cached_tokens
        most = (len(submit.token_ids) // TOKEN_BYTES - 1) // self.block_size
        depth = 0
        for digest in split_digests(submit.digests)[:most]:
            if digest not in self.cache:
                break
            depth += 1
        return depth * self.block_size

    def _reset(self, message: ResetCache, writer: asyncio.StreamWriter) -> None:
        in_use = len(self.running)
        if not in_use:
            self.cache.clear()
            self.emit(Cleared())
        writer.write(frame(encode(CacheReset(message.call_id, in_use))))

    # Steps

    def emit(self, *events: KvEvent) -> None:
        """A step without outputs, whose events every router sees."""
        self._send_step(list(events), {})

    def evict(self, *digests: bytes) -> None:
        """A block goes with all that follow it: give them too."""
        for digest in digests:
            self.cache.remove(digest)
        self.emit(Removed(join_digests(digests)))

    def step(self) -> None:
        """One token for every sequence that runs."""
        if any(self._is_fatal(running.submit) for running in self.running.values()):
            self._collapse()
            return
        events: list[KvEvent] = []
        outputs: dict[asyncio.StreamWriter, list[SequenceOutput]] = {}
        for request_id, running in list(self.running.items()):
            events += self._store(running)
            for index in self._unfinished(running):
                outputs.setdefault(running.writer, []).append(self._next(request_id, running, index))
            if not self._unfinished(running):
                del self.running[request_id]
        self._send_step(events, outputs)
        longest = max((n for running in self.running.values() for n in running.emitted), default=0)
        if self.die_after_tokens is not None and longest >= self.die_after_tokens:
            self._collapse()

    def _is_fatal(self, submit: Submit) -> bool:
        return self.fatal_token is not None and self.fatal_token in unpack_tokens(submit.token_ids)

    def _collapse(self) -> None:
        """Dead, once what was written is sent."""
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.close()
        self.writers.clear()
        self.running.clear()

    def _send_step(
        self, events: list[KvEvent], outputs: dict[asyncio.StreamWriter, list[SequenceOutput]]
    ) -> None:
        self.step_number += 1
        for writer in self.writers:
            mine = tuple(outputs.get(writer, ()))
            writer.write(frame(encode(StepFrame(self.step_number, mine, tuple(events), self.load))))

    def _store(self, running: Running) -> list[KvEvent]:
        if running.started:
            return []
        running.started = True
        new = [each for each in split_digests(running.submit.digests) if each not in self.cache]
        self.cache += new
        return [Stored(join_digests(new), None)] if new else []

    def _unfinished(self, running: Running) -> list[int]:
        most = running.submit.sampling.max_tokens or 0
        ended = {*running.submit.finished, *running.stopped}
        return [i for i, n in enumerate(running.emitted) if n < most and i not in ended]

    def _next(self, request_id: str, running: Running, index: int) -> SequenceOutput:
        token = 1000 * index + running.emitted[index]
        running.emitted[index] += 1
        last = running.emitted[index] == running.submit.sampling.max_tokens
        finish = FinishReason.LENGTH if last else None
        scores = self._score(running) if index == 0 else None
        return SequenceOutput(
            request_id, index, (token,), running.num_cached_tokens, finish, prompt_logprobs=scores
        )

    def _score(self, running: Running) -> tuple[TokenLogprob, ...] | None:
        """Once, where it was asked for: the prompt's token number k has logprob -k."""
        if running.submit.sampling.prompt_logprobs is None or running.scored:
            return None
        running.scored = True
        num_tokens = len(running.submit.token_ids) // TOKEN_BYTES
        return tuple(TokenLogprob(-float(place), 1) for place in range(1, num_tokens))

    async def _step_while_there_is_work(self) -> None:
        while True:
            await self._work.wait()
            if not (self.automatic and self.running):
                self._work.clear()
                continue
            self.step()
            await asyncio.sleep(0)


@pytest.fixture
def secrets() -> DeploymentSecrets:
    return DeploymentSecrets(b"h" * 24, b"k" * 32, b"s" * 32)


@pytest.fixture
def hasher(secrets: DeploymentSecrets) -> BlockHasher:
    return BlockHasher(secrets.hash_secret, BLOCK_SIZE)


@pytest.fixture
async def make_replica(secrets: DeploymentSecrets) -> AsyncIterator[Callable[..., Awaitable[FakeReplica]]]:
    """`await make_replica("a", automatic=False, ...)`: listens until the test ends."""
    made: list[FakeReplica] = []

    async def make(replica_id: str = "a", **knobs: Any) -> FakeReplica:
        replica = FakeReplica(**{"secrets": secrets, "replica_id": replica_id, **knobs})
        await replica.start()
        made.append(replica)
        return replica

    yield make
    for replica in made:
        await replica.aclose()


@pytest.fixture
async def make_router(
    secrets: DeploymentSecrets, eventually: Callable[..., Awaitable[None]]
) -> AsyncIterator[Callable[..., Awaitable[Router]]]:
    """`await make_router([replicas], **config)`: connected to all of them and SYNCED, unless `wait=False`."""
    made: list[Router] = []

    async def make(replicas: Sequence[FakeReplica] = (), *, wait: bool = True, **config: Any) -> Router:
        settings = {"reconnect_first_s": 0.01, "reconnect_most_s": 0.02, "refused_retry_s": 0.02, **config}
        router = Router(RouterConfig(**settings), IDENTITY, secrets, rng=random.Random(0))
        made.append(router)
        await router.set_replicas([replica.info() for replica in replicas])
        if wait:
            await eventually(lambda: all(each.index.value == "synced" for each in router.status().replicas))
        return router

    yield make
    for router in made:
        await router.aclose()


@pytest.fixture
def make_request() -> Callable[..., RoutedRequest]:
    numbers = iter(range(10**6))

    def make(
        tokens: Sequence[int] = range(10), *, max_tokens: int = 3, n: int = 1, **more: Any
    ) -> RoutedRequest:
        sampling = SamplingParams(n=n, max_tokens=max_tokens, seed=1, temperature=0.0)
        return RoutedRequest(f"request-{next(numbers)}", pack_tokens(tokens), sampling, **more)

    return make


@pytest.fixture
def tokens_of() -> Callable[..., Awaitable[list[list[int]]]]:
    """Each sequence's tokens, to the end."""

    async def read(generation: Any, num_sequences: int = 1) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in range(num_sequences)]
        async for output in generation:
            tokens[output.index].extend(output.token_ids)
        return tokens

    return read


@pytest.fixture
def answer(
    tokens_of: Callable[..., Awaitable[list[list[int]]]],
) -> Callable[[Router, RoutedRequest], Awaitable[list[list[int]]]]:
    """All tokens of a request's sequences."""

    async def ask(router: Router, request: RoutedRequest) -> list[list[int]]:
        async with router.open(request) as generation:
            return await tokens_of(generation, request.sampling.n)

    return ask


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition that another task brings about holds; the test's own timeout bounds it."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.002)

    return wait
