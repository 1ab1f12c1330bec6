"""The runner for GPUs against the machine's own ceilings: kernels, decode, prefill, prefix hits, the engine's loop.

    python benchmarks/gpu.py [--device cuda|cpu] [--quick] [--output FILE]

An 8B Llama's shape with noise for weights, in bf16; with `--device cpu` a tiny one, on the CPU's runner. Floors are
arithmetic over ceilings that the same run measures first. `--quick` leaves out the longest contexts and runs.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_parts.ceilings import Ceilings, measure_ceilings
from gpu_parts.requests import first_token_s, greedy_tokens, loop_s, offline_s
from gpu_parts.rows import Row, print_rows, timed, write_rows
from gpu_parts.scopes import SCOPES, Scope
from gpu_parts.step_times import DRAWN, decode_s, fits, prefill_s

from protocol.block_hash import SECRET_BYTES
from protocol.model_source import ModelSource, resolve_model
from workers.engine import Engine
from workers.engine_builder import build_engine, build_runner
from workers.engine_config import EngineConfig
from workers.runner import Runner
from workers.tensor_parallel import TensorParallelGroup

SEED, SECRET = 0, b"h" * SECRET_BYTES
DECODE_TARGETS = {(1, 1024): 0.80, (32, 1024): 0.78, (256, 1024): 0.75, (256, 256): 0.70}
PREFILL_TARGET = 0.75


@dataclass
class Bench:
    scope: Scope
    ceilings: Ceilings
    runner: Runner
    engine: Engine
    rows: list[Row] = field(default_factory=list)

    def decode(self, kind: str = "") -> None:
        scope, itemsize = self.scope, self.scope.dtype.itemsize
        for batch in scope.batches:
            for length in scope.lengths:
                if fits(self.runner, batch, length) and length > scope.steps + 8:
                    floor_s = scope.shape.decode_floor_s(batch, length, itemsize, self.ceilings)
                    work = partial(decode_s, self.runner, batch, length, scope.steps)
                    self._time(
                        f"{kind}decode {batch} x {length}", work, floor_s, DECODE_TARGETS.get((batch, length))
                    )
        batch, length = scope.batches[-1], scope.lengths[0]
        self._time(
            f"{kind}decode {batch} x {length}, temperature, top-k and top-p",
            lambda: decode_s(self.runner, batch, length, scope.steps, DRAWN),
            scope.shape.decode_floor_s(batch, length, itemsize, self.ceilings),
        )

    def loop(self) -> None:
        """The gap between this and the same steps from the runner alone is the host's."""
        batch, length = self.scope.batches[-1], self.scope.lengths[0]
        steps = self.scope.steps
        self._time(f"engine loop {batch} x {length}", lambda: loop_s(self.engine, batch, length, steps))

    def prefill(self) -> None:
        for tokens in self.scope.chunks:
            if tokens <= self.scope.max_num_batched_tokens and fits(self.runner, 1, tokens + 1):
                floor_s = self.scope.shape.prefill_floor_s(
                    tokens, 0, self.scope.dtype.itemsize, self.ceilings
                )
                self._time(
                    f"prefill {tokens}", partial(prefill_s, self.runner, tokens), floor_s, PREFILL_TARGET
                )

    def hit(self) -> None:
        length, chance = self.scope.hit, random.Random(SEED)
        prompts = [chance.choices(range(3, self.scope.shape.vocabulary), k=length - 64) for _ in range(3)]
        tails = iter(range(3, 1000))

        def ask(prompt: list[int]) -> float:
            tail = next(tails)
            return first_token_s(self.engine, [*prompt, *[tail] * 64], f"hit {tail}")

        cold = iter(prompts)
        floor_s = self.scope.shape.prefill_floor_s(64, length - 64, self.scope.dtype.itemsize, self.ceilings)
        self._time(f"first token of {length}, cold", lambda: ask(next(cold)))
        self._time(f"first token of {length}, all but 64 cached", lambda: ask(prompts[0]), floor_s)

    def offline(self) -> None:
        seconds, num_tokens = offline_s(self.engine, self.scope.offline, SEED)
        self.rows.append(Row("offline, generated", "tokens/s", num_tokens / seconds, 0.0))

    def _time(
        self, name: str, work: Callable[[], float], floor_s: float | None = None, target: float | None = None
    ) -> None:
        self.rows.append(timed(name, work, floor_s, target))
        print(f"- {name}: {self.rows[-1].measured:.3f} ms", flush=True)


def main() -> None:
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device")
        return
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    scope = SCOPES[arguments.device, arguments.quick]
    print_machine(device)
    check_tokens(arguments.device)
    ceilings = measure_ceilings(device, scope.dtype)
    print(
        f"- ceilings: {ceilings.copied_bytes_per_s / 1e12:.2f} TB/s copied, {ceilings.read_bytes_per_s / 1e12:.2f} TB/s"
        f" read, {ceilings.flops / 1e12:.1f} TFLOP/s"
    )
    rows = kernel_rows(device, ceilings) if arguments.device == "cuda" else []
    with tempfile.TemporaryDirectory() as directory:
        scope.shape.write(Path(directory))
        rows += model_rows(device, scope, ceilings, Path(directory))
        rows += deterministic_rows(device, scope, ceilings, Path(directory))
    print()
    print_rows(rows)
    if arguments.output is not None:
        write_rows(arguments.output, rows, device=device_name(device), torch=torch.__version__, seed=SEED)


def print_machine(device: torch.device) -> None:
    print("# The runner for GPUs\n")
    print(f"- device: {device_name(device)}")
    print(f"- versions: Python {platform.python_version()}, torch {torch.__version__}")
    print(f"- seed: {SEED}")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "a CPU"


def kernel_rows(device: torch.device, ceilings: Ceilings) -> list[Row]:
    from gpu_parts.kernel_times import KernelBench, KernelScope  # with the kernels it brings triton

    from workers.model.cuda.cuda_device import CudaDevice

    return list(KernelBench(CudaDevice(device), ceilings, KernelScope()).run())


def model_rows(device: torch.device, scope: Scope, ceilings: Ceilings, directory: Path) -> list[Row]:
    bench = open_bench(device, scope, ceilings, directory)
    for part in (bench.decode, bench.prefill, bench.hit, bench.loop, bench.offline):
        part()
    bench.engine.close()
    return bench.rows


def deterministic_rows(device: torch.device, scope: Scope, ceilings: Ceilings, directory: Path) -> list[Row]:
    bench = open_bench(device, scope, ceilings, directory, deterministic=True)
    bench.decode("deterministic, ")
    bench.engine.close()
    return bench.rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON with the table's rows")
    return parser.parse_args()


def open_bench(
    device: torch.device, scope: Scope, ceilings: Ceilings, directory: Path, deterministic: bool = False
) -> Bench:
    config = EngineConfig(
        model=str(directory),
        device=device.type,
        deterministic=deterministic,
        dtype=str(scope.dtype).removeprefix("torch."),
        max_model_len=max(scope.hit + 128, 4 * max(scope.lengths)),
        max_num_seqs=scope.max_num_seqs,
        max_num_batched_tokens=scope.max_num_batched_tokens,
        load_format="dummy",
    )
    source = ModelSource("bench", directory, "", "", "")
    runner = build_runner(config, source, TensorParallelGroup())
    return Bench(scope, ceilings, runner, build_engine(config, runner, SECRET))


def check_tokens(device: str) -> None:
    """Correctness before any figure: the built-in model in fp32 says what it says on a CPU, with graphs and without."""
    prompt, said = [5, 9, 200, 31, 7] * 20, []
    for options in ({"device": "cpu"}, {"device": device}, {"device": device, "enforce_eager": True}):
        config = EngineConfig(
            dtype="float32", block_size=16, kv_cache_memory_bytes=64 << 20, max_num_seqs=4, **options
        )
        runner = build_runner(config, resolve_model(config.model), TensorParallelGroup())
        engine = build_engine(config, runner, SECRET)
        said.append(greedy_tokens(engine, prompt, 40))
        engine.close()
    assert said[0] == said[1] == said[2], f"the device says {said[1]} and {said[2]}, a CPU {said[0]}"
    print("- tokens: as a CPU's, with graphs and without")


if __name__ == "__main__":
    main()
