"""What the engine's host side costs: time per step around a device that does nothing, hashing, caching that never hits.

    python benchmarks/engine.py [PAIRS]

The last table runs the built-in model with prefix caching on and off in turn, on prompts that share nothing, and
compares the CPU seconds of each pair of runs. PAIRS is how many (default 40).
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import xxhash
from report import print_header

from protocol.block_hash import SECRET_BYTES, BlockHasher
from protocol.messages import Submit
from protocol.model_source import resolve_model
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.engine import Engine
from workers.engine_builder import build_engine, build_runner
from workers.engine_config import EngineConfig
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

SEED, BLOCK_SIZE = 0, 16
SECRET = b"h" * SECRET_BYTES
NUM_STEPS, WARM_STEPS = 400, 40
NUM_HASHED_TOKENS = 32_000
PROMPTS_PER_RUN, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 256, 16


class IdleDevice:
    """Draws the same token for everybody, in no time."""

    facts = RunnerFacts(20_000, BLOCK_SIZE, 4096, 1000, (0,))

    def launch(self, plan: StepPlan) -> SampledTokens:
        return SampledTokens([7] * plan.num_drawn)

    def close(self) -> None: ...


def main() -> None:
    num_pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    torch.set_num_threads(1)
    print_header(
        "Engine, host side",
        model="sapling, for the last table",
        block_size=BLOCK_SIZE,
        seed=SEED,
        unique_prompts=f"{PROMPTS_PER_RUN} x {PROMPT_TOKENS} tokens, {OUTPUT_TOKENS} generated each",
        pairs_of_runs=num_pairs,
    )
    print_host_time()
    print_hashing()
    print_cost_of_caching(num_pairs)


def print_host_time() -> None:
    print("| sequences decoding | host µs per step, median (10 % to 90 %) |\n|---|---|")
    for count in (1, 64, 256):
        samples = sorted(1e6 * each for each in step_seconds(count))
        low, high = samples[len(samples) // 10], samples[-1 - len(samples) // 10]
        print(f"| {count} | {statistics.median(samples):.0f} ({low:.0f} to {high:.0f}) |")


def step_seconds(num_sequences: int) -> list[float]:
    """Of steps in which every sequence decodes: blocks begin, fill and are registered as they come."""
    config = SchedulerConfig(max_num_seqs=256, max_num_batched_tokens=1 << 16)
    engine = Engine(IdleDevice(), config, BlockHasher(SECRET, BLOCK_SIZE))
    sampling = SamplingParams(max_tokens=3000, seed=0, ignore_eos=True)
    chance = random.Random(SEED)
    for number in range(num_sequences):
        prompt = chance.choices(range(1, 999), k=chance.randrange(20, 120))
        engine.submit(Submit(str(number), pack_tokens(prompt), sampling))
    for _ in range(WARM_STEPS):
        engine.step()
    return [seconds(engine.step) for _ in range(NUM_STEPS)]


def print_hashing() -> None:
    hasher = BlockHasher(SECRET, BLOCK_SIZE)
    tokens = pack_tokens(random.Random(SEED).choices(range(2000), k=NUM_HASHED_TOKENS))
    stride = 4 * BLOCK_SIZE

    def bare() -> None:
        for start in range(0, len(tokens), stride):
            xxhash.xxh3_128_digest(tokens[start : start + stride])

    pairs = [(seconds(lambda: hasher.digests(tokens)), seconds(bare)) for _ in range(200)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"\nBlock hashing, from int32 ids: {ratio:.2f} x a bare xxh3 call per block, {len(pairs)} pairs\n")


def print_cost_of_caching(num_pairs: int) -> None:
    engines = {enabled: sapling(enabled) for enabled in (True, False)}
    for engine in engines.values():
        run(engine, 0)
    ratios = []
    for number in range(1, num_pairs + 1):
        order = (True, False) if number % 2 else (False, True)
        spent = {enabled: cpu_seconds(partial(run, engines[enabled], number)) for enabled in order}
        ratios.append(spent[True] / spent[False])
    ratios.sort()
    middle, error = statistics.mean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    assert engines[True].load().cache.hit == 0, "a prompt that was to be unique hit the cache"
    print("| caching on : off at 0 % hits, CPU seconds | |\n|---|---|")
    print(f"| mean of {num_pairs} pairs | {middle:.4f} ± {error:.4f} |")
    print(f"| median | {statistics.median(ratios):.4f} |")


def sapling(enable_prefix_caching: bool) -> Engine:
    config = EngineConfig(enable_prefix_caching=enable_prefix_caching, kv_cache_memory_bytes=32 << 20)
    runner = build_runner(config, resolve_model(config.model), TensorParallelGroup())
    return build_engine(config, runner, SECRET)


def run(engine: Engine, number: int) -> None:
    """Prompts that nobody has sent before and nobody will again."""
    chance = random.Random(f"{SEED} {number}")
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True, seed=0)
    vocabulary = range(3, engine.facts.vocab_size)
    for index in range(PROMPTS_PER_RUN):
        prompt = pack_tokens(chance.choices(vocabulary, k=PROMPT_TOKENS))
        engine.submit(Submit(f"{number}-{index}", prompt, sampling))
    while engine.has_work:
        engine.step()


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
