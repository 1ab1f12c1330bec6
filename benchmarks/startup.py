"""Seconds from `trunkline serve` to ready, against a slim `ray.init` plus `import torch` of the same run.

    python benchmarks/startup.py [--rounds 3]

The floor is what nobody on this stack can avoid; the target is a ratio of at most 2.5.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

from report import print_header

TIMEOUT_S = 180.0
SLIM_RAY = """
import time
started = time.perf_counter()
from controller.config import build_config
from controller.local_ray import connected
with connected(None, build_config({})):
    print(time.perf_counter() - started)
"""
TORCH = """
import time
started = time.perf_counter()
import torch
print(time.perf_counter() - started)
"""


def seconds_of(code: str) -> float:
    """What a fresh interpreter says that it took; its own start and end do not count."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def seconds_to_ready() -> float:
    """Start, wait for /readiness, interrupt, wait for the end."""
    port = free_port()
    command = [sys.executable, "-m", "trunkline", "serve", "--port", str(port)]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(f"http://127.0.0.1:{port}/readiness"):
            assert server.poll() is None, f"trunkline serve ended with status {server.returncode}"
            assert time.perf_counter() - started < TIMEOUT_S, "not ready in time"
            time.sleep(0.05)
        return time.perf_counter() - started
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ["PYTHONPATH"] = os.getcwd()
    print_header("Start-up", model="sapling", replicas=2, rounds=rounds)
    floors = [seconds_of(SLIM_RAY) + seconds_of(TORCH) for _ in range(rounds)]
    ready = [seconds_to_ready() for _ in range(rounds)]
    floor, whole = statistics.median(floors), statistics.median(ready)
    print("| | seconds, median (range) |\n|---|---|")
    print(f"| slim ray.init + import torch | {floor:.1f} ({min(floors):.1f} to {max(floors):.1f}) |")
    print(f"| trunkline serve until ready | {whole:.1f} ({min(ready):.1f} to {max(ready):.1f}) |")
    print(f"| ratio | {whole / floor:.2f} |")


if __name__ == "__main__":
    main()
