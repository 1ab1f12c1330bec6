"""Ending Ray's processes, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from controller.processes import end_processes


def sleeper(title: str) -> subprocess.Popen[bytes]:
    """A process whose command line begins with this title, and that says when it runs."""
    code = "import time; print(flush=True); time.sleep(100)"
    child = subprocess.Popen([title, "-c", code], executable=sys.executable, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.read(1)
    return child


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    yield from _ended(sleeper("ray::Worker"))


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    yield from _ended(sleeper("postgres"))


def _ended(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with child:
        yield child
        child.kill()


def test_a_worker_that_lingers_is_killed(worker: subprocess.Popen[bytes]) -> None:
    assert end_processes([worker.pid], patience_s=0.05) == []
    assert worker.wait() == -9


def test_a_stranger_under_a_reused_pid_is_left_alone(stranger: subprocess.Popen[bytes]) -> None:
    assert end_processes([stranger.pid], patience_s=0.05) == []
    assert stranger.poll() is None


def test_a_process_that_is_gone_is_no_matter() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert end_processes([child.pid, os.getpid()], patience_s=0.05) == []
