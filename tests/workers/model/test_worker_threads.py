"""OpenMP's settings can be had without loading torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from protocol.model_source import resolve_model
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config
from workers.threads import openmp_environment, useful_threads


def test_waiting_threads_sleep() -> None:
    environment = openmp_environment(3)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")


def test_the_environment_is_had_without_torch() -> None:
    program = "import sys, workers.threads, workers.model.runner_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_small_model_is_computed_by_one_thread_and_a_large_one_by_all() -> None:
    config = read_config(resolve_model("sapling").directory)
    small = find_family(config).spec(config)
    assert useful_threads(small, 8) == 1
    assert useful_threads(replace(small, hidden_size=4096), 8) == 8
