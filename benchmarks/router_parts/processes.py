"""Processes that a benchmark starts, watches and ends: ports from their first lines, CPU seconds, memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Process:
    """`pid` and what it listens on."""

    pid: int
    ports: tuple[int, ...]

    @property
    def cpu_s(self) -> float:
        """Of it and all that it started, user and system. The kernel counts in nanoseconds here, not in ticks."""
        return sum(_cpu_s(each.pid) for each in self._family())

    @property
    def resident_bytes(self) -> int:
        return sum(each.memory_info().rss for each in self._family())

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]


def _cpu_s(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def script(name: str, *arguments: str, num_ports: int = 1) -> Iterator[Process]:
    """One of the scripts beside this one, once it has printed its ports."""
    command = [sys.executable, str(HERE / name), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert child.stdout is not None
    try:
        lines = [child.stdout.readline() for _ in range(num_ports)]
        assert all(lines), f"{name} ended before it listened"
        yield Process(child.pid, tuple(map(int, lines)))
    finally:
        _end(child)
        child.stdout.close()


@contextmanager
def listening(command: Sequence[str], port: int) -> Iterator[Process]:
    """Any other program, once something accepts connections on its port."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        while not _accepts(port):
            assert child.poll() is None, f"{command[0]} ended with status {child.returncode}"
            assert time.monotonic() - began < TIMEOUT_S, f"{command[0]} does not listen"
            time.sleep(0.05)
        yield Process(child.pid, (port,))
    finally:
        _end(child)


def wait_until_ready(process: Process) -> Process:
    """Until a router says that it can serve."""
    began = time.monotonic()
    while not _is_ready(process.ports[0]):
        assert time.monotonic() - began < TIMEOUT_S, (
            f"the router on port {process.ports[0]} is not ready in time"
        )
        time.sleep(0.05)
    return process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readiness", timeout=1.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _end(child: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Asked first. All that it started is its own to end, so what is left of those is ended too."""
    family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.terminate()
    try:
        child.wait(5.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for each in family:
        if each.is_running():
            each.kill()
