"""The examples run as the README says, and their output keeps its promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_prefix_caching_example_reuses_the_prefix_and_changes_no_answer() -> None:
    command = [sys.executable, "examples/prefix_caching.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    cached, total = map(int, re.findall(r"Cached tokens: (\d+) of (\d+)", done.stdout)[0])
    assert cached > 0.9 * total
    assert "Paris" in done.stdout
    assert done.stdout.rstrip().endswith("Generated answers are the same: True")
