"""Clients that stream completions of token ids from a whole system over HTTP, and time them. Used by `replay.py`."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from protocol.speeds import Speeds
from simulator.measurement import MeasuredDeployment, MeasuredReplica, MeasuredRequest
from simulator.trace import TraceRequest

MODEL = "sapling"
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 64, 2048
VOCABULARY = range(8, 2000)  # of the model, its special tokens left out
CLIENTS = 64
WARM_UP_REQUESTS, SEED = 40, 0


@cache
def block_tokens(block: int, size: int) -> list[int]:
    """The same for the same block, whoever asks for it."""
    return random.Random(block).choices(VOCABULARY, k=size)


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
    (model,) = status["models"]
    loads = {replica["id"]: replica["load"] for replica in status["replicas"]}
    return MeasuredDeployment(
        model=model["name"],
        policy="trunkline",
        block_size=model["block_size"],
        num_blocks=min(load["num_blocks"] for load in loads.values()),
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        replicas=tuple(MeasuredReplica(name, Speeds(**load["speeds"])) for name, load in loads.items()),
    )
