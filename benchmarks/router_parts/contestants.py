"""Who is measured: our router before mock engines, other routers before mock backends, and each kind of mock directly.

All of them stand at once, so that every round asks each of them in turn and noise meets them alike.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from router_parts.clients import Client, engine_client, http_client
from router_parts.conversation import Conversation
from router_parts.deployment import HOST
from router_parts.processes import Process, free_port, listening, script, wait_until_ready

from router.text.tokenizer import Tokenizer

NUM_REPLICAS = 2
OURS, ENGINE, BACKEND = "trunkline", "engine directly", "HTTP mock directly"
PEERS = ("sglang-router", "smg")  # each a distribution and its command
Connect = Callable[[Conversation], AbstractAsyncContextManager[Client]]


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    floor: str  # whom it is compared with
    connect: Connect
    process: Process | None = None  # the router's; None: there is none

    @property
    def cpu_s(self) -> float | None:
        """Of the router, so far."""
        return None if self.process is None else self.process.cpu_s


@contextmanager
def contestants(
    mock_options: tuple[str, ...], peers: Path | None, tokenizer: Tokenizer
) -> Iterator[list[Contestant]]:
    """`mock_options` go to every mock; `peers` is a virtual environment that holds other routers."""
    with ExitStack() as stack:
        yield [
            _engine(stack, mock_options, tokenizer),
            _ours(stack, mock_options),
            *_over_http(stack, mock_options, peers),
        ]


def _mock(stack: ExitStack, kind: str, options: tuple[str, ...]) -> tuple[int, ...]:
    process = stack.enter_context(
        script(kind, "--replicas", str(NUM_REPLICAS), *options, num_ports=NUM_REPLICAS)
    )
    return process.ports


def _engine(stack: ExitStack, options: tuple[str, ...], tokenizer: Tokenizer) -> Contestant:
    port = _mock(stack, "mock_engine.py", options)[0]
    return Contestant(ENGINE, ENGINE, partial(engine_client, port, tokenizer))


def _ours(stack: ExitStack, options: tuple[str, ...]) -> Contestant:
    ports = _mock(stack, "mock_engine.py", options)
    process = wait_until_ready(stack.enter_context(script("router_process.py", *map(str, ports))))
    return Contestant(OURS, ENGINE, partial(http_client, process.ports[0]), process)


def _over_http(stack: ExitStack, options: tuple[str, ...], peers: Path | None) -> Iterator[Contestant]:
    ports = _mock(stack, "mock_backend.py", options)
    yield Contestant(BACKEND, BACKEND, partial(http_client, ports[0]))
    for name in PEERS:
        program = None if peers is None else peers / "bin" / name
        if program is None or not program.is_file():
            continue
        port = free_port()
        urls = [f"http://{HOST}:{backend}" for backend in ports]
        options = ("--host", HOST, "--port", str(port), "--policy", "cache_aware", "--log-level", "error")
        prometheus = ("--prometheus-port", str(free_port()))
        whole = [str(program), "launch", *options, *prometheus, "--worker-urls", *urls]
        process = wait_until_ready(stack.enter_context(listening(whole, port)))
        yield Contestant(f"{name} {_version(peers, name)}", BACKEND, partial(http_client, port), process)


def _version(peers: Path | None, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run(
        [f"{peers}/bin/python", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
