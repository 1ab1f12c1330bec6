"""The largest share of its floor that each chosen kernel can reach on an H200, from its machine code, without a GPU.

    python benchmarks/kernels_bounds.py
    PYTHONPATH=folder/of/another/triton python benchmarks/kernels_bounds.py

Compiles for sm_90, finds the loop that does the work and counts what a round takes of each resource, at the rates of
`bounds_parts/hopper.py`. A bound says what cannot be reached, not what will be. Assumed: all rounds of a loop are like
its unmasked ones; what comes before and behind it, and a launch's start and tail, cost nothing; shared memory has no
conflicts; as many programs as fit are there. "At most" is the largest of the bounds, every resource busy all the time,
for two guesses of the L2 cache's bandwidth. "In step" is an estimate, no bound: a program's warps wait for each other
at every instruction, and nothing overlaps but what the code itself leaves under way, and programs beside each other.
The first row is of a plain kernel, of whose like figures are published: they reach from below "in step" to a little
above. So "in step" is neither the least nor the most, and a target that it just meets may be missed.
Writes `results/kernels-bounds.json`, with which `tests/kernels/gpu/test_hot_code.py` compares: one table for each
version of triton that it was run with, the others' are kept.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import triton
from bounds_parts import hopper
from bounds_parts.bounds import TARGET, Kernel, Launch, bounds, bytes_in_flight, in_step
from bounds_parts.known import PLAIN_ATTENTION
from bounds_parts.launches import LAUNCHES
from report import print_header

from kernels.gpu.compilation import Compiled, chosen_configurations

TABLE = Path(__file__).resolve().parent / "results" / "kernels-bounds.json"


def main() -> None:
    print_header(
        "Kernels, what their machine code can reach on an H200",
        triton=triton.__version__,
        clock=f"{hopper.CLOCK_HZ / 1e9} GHz, assumed",
        memory=f"{hopper.MEMORY_BYTES_PER_S / 1e12} TB/s, measured; latency {hopper.MEMORY_LATENCY} cycles, assumed",
        L2_cache=f"{hopper.L2_BYTES_PER_S / 1e12} or {hopper.SLOW_L2_BYTES_PER_S / 1e12} TB/s, both guesses;"
        f" latency {hopper.L2_LATENCY} cycles, assumed",
        floor="bytes over the memory's bandwidth, or FLOP over what cuBLAS was measured at, 788 TFLOP/s",
    )
    kernels = {name: Kernel.of(compiled) for name, compiled in chosen().items()}
    write(kernels)
    print(
        "| kernel | launch | programs a processor | KB on the way | copies ahead"
        " | bound by | at most | with the slower L2 | in step | target |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for launch in LAUNCHES:
        print_row(kernels[launch.kernel], launch)


def chosen() -> dict[str, Compiled]:
    """By the name that a launch has for it."""
    configurations = [PLAIN_ATTENTION, *(each for each in chosen_configurations() if TARGET in each.targets)]
    return {launch.kernel: configuration_of(launch, configurations) for launch in LAUNCHES}


def configuration_of(launch: Launch, configurations: list[Compiled]) -> Compiled:
    """Attention's names end in what may be chosen anew."""
    is_attention = launch.kernel.startswith("attention")
    found = [
        each
        for each in configurations
        if each.name == launch.kernel or (is_attention and each.name.startswith(launch.kernel))
    ]
    assert len(found) == 1, f"{launch.kernel} is the name of {len(found)} configurations"
    return found[0]


def print_row(kernel: Kernel, launch: Launch) -> None:
    largest = max(bounds(kernel, launch), key=lambda bound: bound.seconds)
    slower = max(bound.seconds for bound in bounds(kernel, launch, hopper.SLOW_L2_BYTES_PER_S))
    together = max(largest.seconds, in_step(kernel, launch).seconds)
    cells = [
        kernel.compiled.name,
        launch.shape,
        str(kernel.programs_of_processor),
        f"{bytes_in_flight(kernel, launch) / 1024:.0f}",
        "-" if kernel.code.copies_in_flight is None else str(kernel.code.copies_in_flight),
        largest.name,
        *(f"{min(launch.floor_s / seconds, 1.0):.0%}" for seconds in (largest.seconds, slower, together)),
        launch.target,
    ]
    print(f"| {' | '.join(cells)} |")


def write(kernels: dict[str, Kernel]) -> None:
    """What the test holds."""
    tables = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    tables[triton.__version__] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "kernels": {
            kernel.compiled.name: {
                "instructions": len(kernel.code.instructions),
                "matrix_instructions": kernel.code.matrix_instructions,
                "wide_loads": kernel.code.wide_loads,
                "copies_in_flight": kernel.code.copies_in_flight,
            }
            for kernel in kernels.values()
            if kernel.compiled is not PLAIN_ATTENTION
        },
    }
    TABLE.write_text(json.dumps(dict(sorted(tables.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
