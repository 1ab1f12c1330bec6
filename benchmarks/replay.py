"""Replays the head of a trace against a real system of two replicas, and writes what was measured.

    python benchmarks/replay.py --trace conversation.jsonl REPORT.json [--system sapling|modelled]
    trunkline simulate --fit REPORT.json

sapling: `trunkline serve` with the built-in model and clients that stream over HTTP on reused connections. Prompts and
answers are divided by --scale, blocks of the trace with them, so that each still is one block of the replicas. A pause
of the machine counts as the system's: run it on one that is otherwise idle.
modelled: routers and replicas of the product in this process, on devices whose steps only take the time that the
default service model says; the trace as it is. Times are multiplied by --stretch in both.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from report import print_header
from simulated_devices import ModelledSystem, modelled_system
from system import running_system

from protocol.speeds import Speeds
from simulator.measurement import (
    MeasuredDeployment,
    MeasuredReplica,
    MeasuredRequest,
    Measurement,
    write_measurement,
)
from simulator.trace import BLOCK_TOKENS, TraceRequest, read_trace

MODEL, REPLICAS, SEED = "sapling", 2, 0
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 64, 2048
MAX_MODEL_LEN = 2048
TOKEN_KV_BYTES = 2 * 4 * 4 * 32 * 2  # keys and values, layers, heads, their size, bf16
VOCABULARY = range(8, 2000)  # of the model, its special tokens left out
CLIENTS = 64
WARM_UP_REQUESTS = 40


@cache
def block_tokens(block: int, size: int) -> list[int]:
    """The same for the same block, whoever asks for it."""
    return random.Random(block).choices(VOCABULARY, k=size)


def scaled(requests: Sequence[TraceRequest], scale: int) -> list[TraceRequest]:
    """Those that the model's context holds."""
    size, chosen = BLOCK_TOKENS // scale, list[TraceRequest]()
    for request in requests:
        num_tokens, num_output = (
            max(1, request.num_tokens // scale),
            max(1, request.num_output_tokens // scale),
        )
        if num_tokens + num_output <= MAX_MODEL_LEN:
            blocks = request.blocks[: -(-num_tokens // size)]
            chosen.append(
                replace(
                    request,
                    index=len(chosen),
                    num_tokens=num_tokens,
                    num_output_tokens=num_output,
                    blocks=blocks,
                )
            )
    return chosen


class Clients:
    """As many as are needed, each with a connection of its own that it uses again."""

    def __init__(self, url: str, block_size: int) -> None:
        self._url = url
        self._address = urlsplit(url)
        self._block_size = block_size
        self._own = threading.local()

    def replay(
        self, requests: Sequence[TraceRequest]
    ) -> tuple[tuple[MeasuredRequest, ...], MeasuredDeployment]:
        """Each at its time. The replicas are asked at the last arrival: what they have learnt fades when load ends."""
        started_s = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = []
            for request in requests:
                time.sleep(max(0.0, started_s + request.arrival_s - time.monotonic()))
                running.append(pool.submit(self._measured, request, started_s))
            facts = deployment_facts(self._url)
            measured = sorted((each.result() for each in running), key=lambda each: each.arrival_s)
        return tuple(measured), facts

    def _measured(self, request: TraceRequest, started_s: float) -> MeasuredRequest:
        prompt = self._prompt(request)
        began_s = time.monotonic()
        response = self._post(prompt, request.num_output_tokens)
        response.readline()
        first_s = time.monotonic()
        usage = [line for line in response.read().splitlines() if b'"cached_tokens"' in line][-1]
        ended_s = time.monotonic()
        counts = json.loads(usage.removeprefix(b"data: "))["usage"]
        assert counts["completion_tokens"] == request.num_output_tokens, "an answer of another length"
        return MeasuredRequest(
            arrival_s=began_s - started_s,
            num_tokens=request.num_tokens,
            num_output_tokens=request.num_output_tokens,
            cached_tokens=counts["prompt_tokens_details"]["cached_tokens"],
            replica=response.headers["x-trunkline-replica"],
            ttft_s=first_s - began_s,
            end_to_end_s=ended_s - began_s,
            blocks=request.blocks,
        )

    def _prompt(self, request: TraceRequest) -> list[int]:
        tokens = [token for block in request.blocks for token in block_tokens(block, self._block_size)]
        return tokens[: request.num_tokens]

    def _post(self, prompt: list[int], max_tokens: int) -> http.client.HTTPResponse:
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = self._connection()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            assert self._address.hostname is not None, "the system has an address"
            connection = http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=60)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._own.connection = connection
        return connection


def warm_up(url: str, block_size: int) -> None:
    """Compile, page in, learn speeds; then forget what that has cached."""
    dice = random.Random(SEED)
    sizes = [dice.choice((1, 8, 30, 60)) for _ in range(WARM_UP_REQUESTS)]
    requests = [
        TraceRequest(
            index, 0.1 * index, size * block_size, 8, tuple(range(-size * index - size, -size * index))
        )
        for index, size in enumerate(sizes)
    ]
    Clients(url, block_size).replay(requests)
    with urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST")) as answer:
        assert json.load(answer)["reset"], "the warm-up has not ended"


def deployment_facts(url: str) -> MeasuredDeployment:
    with urllib.request.urlopen(f"{url}/status") as answer:
        status: Any = json.load(answer)
    loads = {replica["id"]: replica["load"] for replica in status["replicas"]}
    return MeasuredDeployment(
        model=status["model"],
        policy="trunkline",
        block_size=status["block_size"],
        num_blocks=min(load["num_blocks"] for load in loads.values()),
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        replicas=tuple(MeasuredReplica(name, Speeds(**load["speeds"])) for name, load in loads.items()),
    )


def options_of_the_system(block_size: int, num_blocks: int) -> list[str]:
    sizes = {
        "--replicas": REPLICAS,
        "--num-cpus": 1,
        "--block-size": block_size,
        "--kv-cache-memory-bytes": num_blocks * block_size * TOKEN_KV_BYTES,
        "--max-model-len": MAX_MODEL_LEN,
        "--max-num-seqs": MAX_NUM_SEQS,
        "--max-num-batched-tokens": MAX_NUM_BATCHED_TOKENS,
    }
    return [MODEL, "--dtype", "bfloat16", *(str(part) for option in sizes.items() for part in option)]


def on_sapling(arguments: argparse.Namespace, requests: Sequence[TraceRequest]) -> Measurement:
    size = BLOCK_TOKENS // arguments.scale
    with running_system(*options_of_the_system(size, arguments.blocks)) as system:
        warm_up(system.url, size)
        measured, facts = Clients(system.url, size).replay(scaled(requests, arguments.scale))
        return Measurement(size, facts, measured)


async def on_modelled_devices(arguments: argparse.Namespace, requests: Sequence[TraceRequest]) -> Measurement:
    system = ModelledSystem(REPLICAS, num_blocks=arguments.blocks, policy=arguments.policy)
    async with modelled_system(system) as routers:
        measured, facts = await routers.replay(requests)
        return Measurement(BLOCK_TOKENS, facts, measured)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--system", choices=("sapling", "modelled"), default="sapling")
    parser.add_argument("--policy", choices=("trunkline", "round-robin"), default="trunkline")
    parser.add_argument("--requests", type=int, default=300, help="of the trace's first (default: 300)")
    parser.add_argument("--scale", type=int, default=32, help="a power of two, for sapling (default: 32)")
    parser.add_argument("--stretch", type=float, default=1.0)
    parser.add_argument(
        "--blocks", type=int, help="of each replica's pool (default: as many as 1000 of the trace)"
    )
    arguments = parser.parse_args()
    if arguments.system == "sapling" and arguments.policy != "trunkline":
        parser.error("a whole system routes as it does: --policy is for --system modelled")
    if arguments.blocks is None:
        arguments.blocks = 1000 * (
            1 if arguments.system == "sapling" else BLOCK_TOKENS // ModelledSystem.block_size
        )
    return arguments


def main() -> None:
    arguments = parsed()
    trace = read_trace(arguments.trace)[: arguments.requests]
    requests = [replace(each, arrival_s=arguments.stretch * each.arrival_s) for each in trace]
    print_header("Replay", **{name: value for name, value in vars(arguments).items() if name != "trace"})
    if arguments.system == "sapling":
        measurement = on_sapling(arguments, requests)
    else:
        measurement = asyncio.run(on_modelled_devices(arguments, requests))
    write_measurement(arguments.report, measurement)
    measured = measurement.requests
    mean_s = sum(each.ttft_s for each in measured) / len(measured)
    hits = sum(each.cached_tokens for each in measured) / sum(each.num_tokens for each in measured)
    print(f"{len(measured)} requests, mean TTFT {1e3 * mean_s:.1f} ms, {100 * hits:.1f} % hits")


if __name__ == "__main__":
    main()
