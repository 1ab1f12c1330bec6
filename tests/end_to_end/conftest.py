"""The whole system as its users start it: `trunkline serve` in a process of its own, two replicas, real Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Endpoint:
    """A running system as its clients see it."""

    url: str

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return str(response.read().decode())

    def status(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.get("/status"))
        return loaded

    def replica(self, replica_id: str) -> dict[str, Any]:
        return next(each for each in self.status()["replicas"] if each["id"] == replica_id)

    def counter(self, name: str) -> float:
        """The sum of a Prometheus counter over its labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def is_ready(self) -> bool:
        try:
            return self.get("/readiness") == ""
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@dataclass(frozen=True)
class System(Endpoint):
    """One that was started here."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)


def start_system(log: Path, *options: str, port: int | None = None) -> System:
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
    command = [sys.executable, "-m", "trunkline", "serve", "--port", str(port), *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env=os.environ.copy()
        )
    return System(f"http://127.0.0.1:{port}", process, log)


def await_ready(system: System, num_replicas: int) -> System:
    def ready() -> bool:
        assert system.process.poll() is None, system.log.read_text()
        if not system.is_ready():
            return False
        return [each["state"] for each in system.status()["replicas"]].count("ready") == num_replicas

    try:
        wait_until(ready, START_TIMEOUT_S, f"ready; its log:\n{system.log.read_text()}")
    except BaseException:
        end(system)
        raise
    return system


def end(system: System) -> None:
    """Stop it kindly; whatever is left of its process tree then is killed, and is a failure."""
    if system.process.poll() is not None:
        return
    family = psutil.Process(system.process.pid).children(recursive=True)
    try:
        system.stop()
    except subprocess.TimeoutExpired:
        pytest.fail(f"it did not stop when it was interrupted:\n{system.log.read_text()}")
    finally:
        system.process.kill()
        system.process.wait()
        for each in family:
            if each.is_running():
                each.kill()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    log = tmp_path_factory.mktemp("system") / "serve.log"
    running = await_ready(start_system(log), num_replicas=2)
    yield running
    end(running)


@contextmanager
def started(log: Path, *options: str, port: int, num_replicas: int = 2) -> Iterator[System]:
    running = await_ready(start_system(log, *options, port=port), num_replicas)
    try:
        yield running
    finally:
        end(running)


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    return started


@pytest.fixture
def at_url() -> Callable[[str], Endpoint]:
    return Endpoint


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float, str], None]:
    return wait_until


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., System]]:
    """Start a system of one's own; it is ended whatever happens."""
    started: list[System] = []

    def start(*options: str, num_replicas: int) -> System:
        started.append(start_system(tmp_path / f"serve-{len(started)}.log", *options))
        return await_ready(started[-1], num_replicas)

    yield start
    for each in started:
        end(each)


# A Ray head of its own, as an operator runs one

RAY = str(Path(sys.executable).parent / "ray")
HEAD_ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the job's `python` has the dependencies
}


@dataclass(frozen=True)
class Head:
    gcs: str  # address
    dashboard: str  # URL
    environment: dict[str, str]

    def job(self, *arguments: str) -> str:
        command = [RAY, "job", *arguments, "--address", self.dashboard]
        if "--" in arguments:
            at = arguments.index("--")
            command = [RAY, "job", *arguments[:at], "--address", self.dashboard, *arguments[at:]]
        return self.run(command, timeout_s=120)

    def trunkline(self, *arguments: str, timeout_s: float = 180) -> str:
        """What the command prints that changes the deployment here."""
        command = [sys.executable, "-m", "trunkline", *arguments, "--address", self.gcs]
        return self.run(command, timeout_s)

    def run(self, command: list[str], timeout_s: float) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def take_free_ports(count: int) -> list[int]:
    with ExitStack() as open_together:
        probes = [open_together.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def started_head(
    log: Path, *options: str, port: int | None = None, environment: dict[str, str] | None = None
) -> Iterator[Head]:
    gcs, dashboard, agent, client = take_free_ports(4)
    gcs = port or gcs
    ports = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--ray-client-server-port": client,
    }
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats", "--dashboard-host=127.0.0.1"]
    command += [
        "--node-ip-address=127.0.0.1",
        *(f"{name}={value}" for name, value in ports.items()),
        *options,
    ]
    variables = {**HEAD_ENVIRONMENT, **(environment or {})}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=variables, stdout=stream, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: _answers(dashboard), 90, "the dashboard answers")
        address = f"127.0.0.1:{gcs}"
        yield Head(address, f"http://127.0.0.1:{dashboard}", {**variables, "RAY_ADDRESS": address})
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        for each in family:
            if each.is_running():
                each.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def start_head() -> Callable[..., Any]:
    return started_head


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    return take_free_ports
