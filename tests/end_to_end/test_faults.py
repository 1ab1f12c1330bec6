"""`make soak`: a worker, a router, the controller and a node are killed under load; the benchmark's table is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def test_no_fault_loses_a_request_or_changes_an_answer() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--requests", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| kill")]
    assert len(rows) == 4, done.stdout
    for fault, asked, lost, other_text, *_ in rows:
        assert int(asked) >= 200 and (int(lost), int(other_text)) == (0, 0), fault
