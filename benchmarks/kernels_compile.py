"""Compiles every chosen kernel configuration for every GPU target, none of which need be there, and prints the cost.

    python benchmarks/kernels_compile.py
    PYTHONPATH=folder/of/another/triton python benchmarks/kernels_compile.py

Writes `results/kernels-compile.json`, against which `tests/kernels/gpu/test_ahead_of_time.py` compares: one table for
each version of triton that it was run with, the others' are kept.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import triton
from report import print_header
from tqdm import tqdm

from kernels.gpu.compilation import TARGETS, Compiled, Usage, chosen_configurations, measure_all

TABLE = Path(__file__).resolve().parent / "results" / "kernels-compile.json"


def main() -> None:
    print_header(
        "Kernels, compiled ahead of time",
        triton=triton.__version__,
        cells="registers per thread, bytes of shared memory, matrix instruction; bytes spilled where it is not 0",
    )
    chosen = [(compiled, target) for compiled in chosen_configurations() for target in compiled.targets]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        measuring = measure_all(chosen, pool)
        usages = {key: measuring[key].result() for key in tqdm(measuring, unit="kernel")}
    write(usages)
    print_table(chosen_configurations(), usages)


def write(usages: dict[tuple[str, str], Usage]) -> None:
    tables = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    tables[triton.__version__] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "ptxas": triton.knobs.nvidia.ptxas.version,
        "kernels": [
            {"kernel": name, "target": target, **asdict(usage)} for (name, target), usage in usages.items()
        ],
    }
    text = json.dumps(dict(sorted(tables.items())), indent=1)
    TABLE.write_text(text + "\n", encoding="utf-8")


def print_table(configurations: list[Compiled], usages: dict[tuple[str, str], Usage]) -> None:
    print(f"| kernel | {' | '.join(TARGETS)} |\n|---|{'---|' * len(TARGETS)}")
    for compiled in configurations:
        cells = [cell(usages.get((compiled.name, target))) for target in TARGETS]
        print(f"| {compiled.name} | {' | '.join(cells)} |")


def cell(usage: Usage | None) -> str:
    if usage is None:
        return "-"
    parts = [str(usage.registers), f"{usage.shared_bytes:,}", usage.instructions or ""]
    if usage.spill_bytes:
        parts.append(f"**spills {usage.spill_bytes}**")
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    main()
