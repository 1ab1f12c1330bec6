"""What every benchmark prints first: the machine, the versions, the model and the shape. Used by the scripts here.

Imported before any package of ours: the script's own folder leads the path, and there `router.py` hides `router`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PACKAGES = ("ray", "torch", "tokenizers", "fastapi", "uvicorn")
INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")


def print_header(title: str, **shape: object) -> None:
    print(f"# {title}\n")
    print(f"- date: {datetime.now(UTC):%Y-%m-%d}")
    print(f"- hardware: {os.cpu_count()} cores, {_processor()}; load {os.getloadavg()[0]:.1f} at the start")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"- versions: Python {platform.python_version()}, {versions}")
    for name, value in shape.items():
        print(f"- {name.replace('_', ' ')}: {value}")
    print()


def milliseconds(samples: Sequence[float]) -> str:
    """Median, with the range that shows how noisy the machine was."""
    ordered = sorted(samples)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{1e3 * statistics.median(ordered):.2f} ({1e3 * low:.2f} to {1e3 * high:.2f})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in known.items()}
    flags = fields.get("flags", "").split()
    sets = [name for name in INSTRUCTION_SETS if name in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(sets) or 'no vector sets known'})"
