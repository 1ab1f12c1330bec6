"""What deterministic mode costs: seconds per step with it and without it, step by step in turn, and their ratio.

    python benchmarks/deterministic.py [--threads 1] [--dtypes bfloat16 float32] [--pairs 30]

A Llama of 160 million parameters with random weights, built twice in this process. Decode: every sequence has a prompt
of 256 tokens behind it. Prefill: one prompt of 512 tokens in one step. Prefix caching is off, so every step computes
what it seems to. The second table says which numbers of rows were found to agree to the bit on this machine, and the
third what the search adds to a start.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import milliseconds, print_header

from kernels.deterministic_linear import DeterministicPacker, TiledLinear
from protocol.block_hash import SECRET_BYTES
from protocol.messages import Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.engine import Engine
from workers.engine_builder import build_engine
from workers.engine_config import EngineConfig
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.tensor_parallel import TensorParallelGroup

SEED = 0
CONTEXT, PREFILL = 256, 512  # tokens
BATCHES = (1, 8, 32)
MAX_PREFILLS = 12  # pairs: they are long
VOCABULARY = 32000
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEARS = {
    "qkv": (2304, 768),
    "o": (768, 768),
    "gate_up": (6144, 768),
    "down": (768, 3072),
    "lm_head": (VOCABULARY, 768),
}


class Contestant:
    """One of the two modes."""

    def __init__(self, directory: Path, dtype: str, deterministic: bool) -> None:
        started = time.perf_counter()
        config = RunnerConfig(
            directory,
            dtype,
            max_num_seqs=max(BATCHES),
            kv_cache_memory_bytes=1 << 30,
            load_format="dummy",
            deterministic=deterministic,
            seed=SEED,
        )
        self._runner = CpuRunner(config, TensorParallelGroup())
        self.start_s = time.perf_counter() - started
        self._dice = random.Random(SEED)

    def decoding(self, batch: int, num_steps: int) -> Engine:
        """An engine whose next steps decode `batch` sequences each."""
        engine = self._engine()
        for index in range(batch):
            self._submit(engine, f"{batch}-{index}", CONTEXT, num_steps + batch + 2)
        while engine.load().num_waiting or engine.load().waiting_prefill_tokens:
            engine.step()
        return engine

    def prefilling(self) -> Engine:
        """An engine whose next step computes a prompt."""
        engine = self._engine()
        self._submit(engine, "prompt", PREFILL, 1)
        return engine

    def _engine(self) -> Engine:
        options = EngineConfig(max_num_seqs=max(BATCHES), enable_prefix_caching=False)
        return build_engine(options, self._runner, bytes(SECRET_BYTES))

    def _submit(self, engine: Engine, name: str, num_tokens: int, max_tokens: int) -> None:
        prompt = pack_tokens([self._dice.randrange(3, VOCABULARY) for _ in range(num_tokens)])
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, seed=0)
        engine.submit(Submit(name, prompt, sampling))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--pairs", type=int, default=30, help="of steps, one in each mode")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print_header(
        "Deterministic mode",
        model="Llama, 160 M parameters, random weights",
        shape=f"hidden {SHAPE['hidden_size']}, 12 layers, 12 heads of 64, vocabulary {VOCABULARY}",
        threads=options.threads,
        pairs_of_steps=options.pairs,
        seed=SEED,
    )
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(SHAPE))
        starts = [compare(Path(name), dtype, options.pairs) for dtype in options.dtypes]
    print_sizes(options.dtypes)
    print("\n| dtype | start, seconds, normal | deterministic |\n|---|---|---|")
    for dtype, (normal_s, deterministic_s) in zip(options.dtypes, starts, strict=True):
        print(f"| {dtype} | {normal_s:.1f} | {deterministic_s:.1f} |")


def compare(directory: Path, dtype: str, num_pairs: int) -> tuple[float, float]:
    """Print one dtype's table. Returns how long each mode's start took."""
    modes = [Contestant(directory, dtype, deterministic) for deterministic in (False, True)]
    print(
        f"\n| {dtype}: milliseconds, median (p10 to p90) | normal | deterministic | ratio |\n|---|---|---|---|"
    )
    for batch in BATCHES:
        engines = [mode.decoding(batch, num_pairs) for mode in modes]
        print_row(
            f"decode, batch {batch}", [(seconds(engines[0]), seconds(engines[1])) for _ in range(num_pairs)]
        )
    pairs = min(num_pairs, MAX_PREFILLS)
    both = [tuple(seconds(mode.prefilling()) for mode in modes) for _ in range(pairs + 1)]
    print_row(f"prefill, {PREFILL} tokens", [(pair[0], pair[1]) for pair in both[1:]])
    return modes[0].start_s, modes[1].start_s


def seconds(engine: Engine) -> float:
    """Of one step."""
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started


def print_row(name: str, pairs: list[tuple[float, float]]) -> None:
    normal, deterministic = ([pair[side] for pair in pairs] for side in (0, 1))
    ratio = statistics.median(deterministic) / statistics.median(normal)
    print(f"| {name} | {milliseconds(normal)} | {milliseconds(deterministic)} | {ratio:.2f} |", flush=True)


def print_sizes(dtypes: list[str]) -> None:
    print("\n| linear | dtype | numbers of rows that agree to the bit |\n|---|---|---|")
    for dtype in dtypes:
        packer = DeterministicPacker(getattr(torch, dtype))
        for name, shape in LINEARS.items():
            linear = packer.pack(torch.randn(shape).to(getattr(torch, dtype)), None)
            assert isinstance(linear, TiledLinear)
            print(f"| {name} {shape[0]}x{shape[1]} | {dtype} | {', '.join(map(str, linear.sizes()))} |")


if __name__ == "__main__":
    main()
