"""A whole system of one's own for a benchmark: `trunkline serve` on a free port, interrupted at the end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 180.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RunningSystem:
    url: str
    seconds_to_ready: float


@contextmanager
def running_system(*options: str) -> Iterator[RunningSystem]:
    """Ready once it has been entered."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "trunkline", "serve", "--port", str(port), *options]
    started = time.perf_counter()
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(f"{url}/readiness"):
            assert server.poll() is None, f"trunkline serve ended with status {server.returncode}"
            assert time.perf_counter() - started < TIMEOUT_S, "not ready in time"
            time.sleep(0.05)
        yield RunningSystem(url, time.perf_counter() - started)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
