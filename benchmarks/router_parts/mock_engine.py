"""Replicas without a model: they speak the data plane, cache digests, and answer with the prompt's own words.

    python benchmarks/router_parts/mock_engine.py --replicas 2 [--step-s 0.002 | --at-once]

Prints one port a replica. A step gives every running sequence one token, as an engine's does: announced by its first
output, then in columns. `--at-once` gives all of a request's tokens in one output, which leaves the router's cost of
a request and hardly any of its tokens'.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from dataclasses import dataclass, field
from itertools import count

import uvloop
from deployment import BLOCK_SIZE, HOST, NUM_BLOCKS, SECRETS, replica_facts

from protocol.block_hash import join_digests, split_digests
from protocol.codec import decode, encode
from protocol.events import KvEvent, Stored
from protocol.frames import frame, read_frame
from protocol.handshake import greet_router
from protocol.messages import (
    Cancel,
    FinishReason,
    Load,
    Ping,
    Pong,
    SequenceOutput,
    SnapshotChunk,
    StepFrame,
    Submit,
)
from protocol.speeds import Speeds
from protocol.tokens import pack_tokens, unpack_tokens

SPEEDS = Speeds(0.001, 1e-5, 0.0, 0.002, 1e-5)  # what a router is told, so that it routes by cost


@dataclass(slots=True)
class Running:
    """`words`: what its answer repeats."""

    request_id: str
    words: list[int]
    num_tokens: int  # still to come
    num_cached: int
    row: int | None = None

    def next_token(self) -> int:
        self.num_tokens -= 1
        return self.words[self.num_tokens % len(self.words)]


@dataclass
class MockReplica:
    replica_id: str
    step_s: float
    at_once: bool
    running: dict[str, Running] = field(default_factory=dict)
    cache: set[bytes] = field(default_factory=set)
    events: list[KvEvent] = field(default_factory=list)
    rows: count[int] = field(default_factory=count)
    step_number: int = 0
    work: asyncio.Event = field(default_factory=asyncio.Event)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One router's connection. There is one at a time."""
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await greet_router(reader, writer, SECRETS.hello_key, replica_facts(self.replica_id))
        writer.write(frame(encode(SnapshotChunk(self.step_number, join_digests(sorted(self.cache)), True))))
        self.send(writer, ())
        stepping = None if self.at_once else asyncio.create_task(self.step_while_there_is_work(writer))
        try:
            while (payload := await read_frame(reader)) is not None:
                self.receive(decode(payload), writer)
        finally:
            self.running.clear()
            if stepping is not None:
                stepping.cancel()
            writer.close()

    def receive(self, message: object, writer: asyncio.StreamWriter) -> None:
        match message:
            case Submit() if self.at_once:
                self.send(writer, (self.whole(self.begin(message)),))
            case Submit():
                self.running[message.request_id] = self.begin(message)
                self.work.set()
            case Cancel():
                self.running.pop(message.request_id, None)
            case Ping(number):
                writer.write(frame(encode(Pong(number))))

    def begin(self, submit: Submit) -> Running:
        """Its blocks are cached from now on."""
        digests = split_digests(submit.digests)
        known = next((place for place, each in enumerate(digests) if each not in self.cache), len(digests))
        if known < len(digests):
            parent = digests[known - 1] if known else None
            self.events.append(Stored(join_digests(digests[known:]), parent))
            self.cache.update(digests[known:])
        token_ids = unpack_tokens(submit.token_ids)
        most = (len(token_ids) - 1) // BLOCK_SIZE
        middle = len(token_ids) // 2  # inside some message's text
        words = list(token_ids[middle : middle + 16])
        num_tokens = submit.sampling.max_tokens or 1
        return Running(submit.request_id, words, num_tokens, BLOCK_SIZE * min(known, most))

    def whole(self, running: Running) -> SequenceOutput:
        tokens = tuple(running.next_token() for _ in range(running.num_tokens))
        return SequenceOutput(running.request_id, 0, tokens, running.num_cached, FinishReason.LENGTH)

    async def step_while_there_is_work(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.work.wait()
            self.step(writer)
            await writer.drain()
            await asyncio.sleep(self.step_s)
            if not self.running:
                self.work.clear()

    def step(self, writer: asyncio.StreamWriter) -> None:
        outputs, rows, tokens = [], [], []
        for running in list(self.running.values()):
            token = running.next_token()
            if running.row is not None and running.num_tokens:
                rows.append(running.row)
                tokens.append(token)
                continue
            outputs.append(self.announced(running, token))
            if not running.num_tokens:
                del self.running[running.request_id]
        self.send(writer, tuple(outputs), pack_tokens(rows), pack_tokens(tokens))

    def announced(self, running: Running, token: int) -> SequenceOutput:
        """Its first token or its last one."""
        running.row = next(self.rows) if running.row is None else running.row
        finish = None if running.num_tokens else FinishReason.LENGTH
        return SequenceOutput(
            running.request_id, 0, (token,), running.num_cached, finish, row=None if finish else running.row
        )

    def send(
        self,
        writer: asyncio.StreamWriter,
        outputs: tuple[SequenceOutput, ...],
        rows: bytes = b"",
        tokens: bytes = b"",
    ) -> None:
        """The rest of a step, with what the cache has gained."""
        self.step_number += 1
        events, self.events = tuple(self.events), []
        load = Load(len(self.running), 0, NUM_BLOCKS, 0, len(self.cache), 0, speeds=SPEEDS)
        writer.write(frame(encode(StepFrame(self.step_number, outputs, events, load, rows, tokens))))


async def serve(num_replicas: int, step_s: float, at_once: bool) -> None:
    for number in range(num_replicas):
        replica = MockReplica(f"r{number}", step_s, at_once)
        server = await asyncio.start_server(replica.converse, HOST, 0)
        print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    uvloop.run(serve(options.replicas, options.step_s, options.at_once))
