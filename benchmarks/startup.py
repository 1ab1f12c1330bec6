"""Seconds from `trunkline serve` to ready, against a slim `ray.init` plus `import torch` of the same run.

    python benchmarks/startup.py [--rounds 3]

The floor is what nobody on this stack can avoid; the target is a ratio of at most 2.5. Ready means that a forward pass
has run on at least one replica and the endpoint says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from report import print_header
from system import ROOT, running_system

SLIM_RAY = """
import time
started = time.perf_counter()
from controller.config_file import build_config
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def seconds_to_ready() -> float:
    with running_system() as system:
        return system.seconds_to_ready


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print_header("Start-up", model="sapling", replicas=2, rounds=rounds)
    pairs = [(seconds_of(SLIM_RAY) + seconds_of(TORCH), seconds_to_ready()) for _ in range(rounds)]
    floors, ready = ([pair[side] for pair in pairs] for side in (0, 1))
    floor, whole = statistics.median(floors), statistics.median(ready)
    print("| | seconds, median (range) |\n|---|---|")
    print(f"| slim ray.init + import torch | {floor:.1f} ({min(floors):.1f} to {max(floors):.1f}) |")
    print(f"| trunkline serve until ready | {whole:.1f} ({min(ready):.1f} to {max(ready):.1f}) |")
    print(f"| ratio | {whole / floor:.2f} |")


if __name__ == "__main__":
    main()
