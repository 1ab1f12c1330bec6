"""The runner for GPUs against the machine's own ceilings: correctness, kernels, steps, requests.

    python benchmarks/gpu.py [--device cuda|cpu] [--only STAGE ...] [--quick] [--seconds S] [--output FILE]

An 8B Llama's shape with noise for weights, in bf16; with `--device cpu` a tiny one, on the CPU's runner. Floors are
arithmetic over ceilings that the same run measures first. `--output` is JSON, with the table as markdown beside it:
both are written row by row, and a call for other stages adds to them. What fails is a row too.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_parts.ceilings import measure_ceilings
from gpu_parts.checks import check_all
from gpu_parts.model_requests import time_requests
from gpu_parts.model_steps import time_steps
from gpu_parts.models import Machine
from gpu_parts.rows import Report, Row
from gpu_parts.scopes import SCOPES


def main() -> int:
    """1 where something failed, be it correctness or a stage."""
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    scope = SCOPES[arguments.device, arguments.quick]
    report = Report(arguments.output, about(device, arguments.quick), arguments.seconds)
    ceilings = measure_ceilings(device, scope.dtype)
    report.add(Row("copied, read and written", "TB/s", ceilings.copied_bytes_per_s / 1e12))
    report.add(Row("read", "TB/s", ceilings.read_bytes_per_s / 1e12))
    report.add(Row(f"products, {scope.dtype}", "TFLOP/s", ceilings.flops / 1e12))
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(device, scope, ceilings, scope.shape.write(Path(directory)), report)
        for stage in arguments.only:
            report.attempt(stage, lambda stage=stage: STAGES[stage](machine))
    print("\n" + report.table())
    return int(any(row.verdict == "FAILED" for row in report.rows.values()))


def time_kernels(machine: Machine) -> None:
    if machine.device.type == "cpu":
        return
    from gpu_parts.kernel_times import KernelBench, KernelScope  # with the kernels it brings triton

    from workers.model.cuda.cuda_device import CudaDevice

    KernelBench(CudaDevice(machine.device), machine.ceilings, KernelScope(), machine.report).run()


STAGES = {
    "correctness": check_all,
    "kernels": time_kernels,
    "steps": time_steps,
    "requests": time_requests,
}


def about(device: torch.device, quick: bool) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "a CPU"
    return {
        "device": name,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "scope": "quick" if quick else "full",
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=tuple(STAGES), nargs="+", default=list(STAGES), metavar="STAGE")
    parser.add_argument("--quick", action="store_true", help="without the longest contexts and runs")
    parser.add_argument("--seconds", type=float, default=540.0, help="behind which nothing more begins")
    parser.add_argument("--output", type=Path, help="JSON with the table's rows")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
