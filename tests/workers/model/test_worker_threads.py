"""OpenMP's settings can be had without loading torch."""

from __future__ import annotations

import subprocess
import sys

from workers.threads import openmp_environment


def test_waiting_threads_sleep() -> None:
    environment = openmp_environment(3)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")


def test_the_environment_is_had_without_torch() -> None:
    program = "import sys, workers.threads, workers.model.runner_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
