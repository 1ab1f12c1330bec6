"""What the HTTP path costs: latency, throughput, streams and CPU time of our router, beside other routers'.

    python -m venv DIR && DIR/bin/pip install sglang-router smg       # not needed, and none of our dependencies
    python benchmarks/router.py [--peers DIR] [--rounds 200] [--seconds 5]

Our router stands before two mock engines that speak the real data plane; the others before two mock backends that
speak HTTP. "Directly" is the same client at a mock itself, with the prompt tokenized beforehand where it takes tokens.
Client, router and mocks share the machine's cores, so the CPU time of the router's process alone is the figure to
compare; wall-clock time stands next to it.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop
from report import print_header
from router_parts.clients import Timing
from router_parts.contestants import ENGINE, OURS, PEERS, Contestant, contestants
from router_parts.conversation import Conversation
from router_parts.deployment import MODEL
from router_parts.loads import Load, MakeConversation, take_turns, under_load

from protocol.model_source import resolve_model
from router.text.tokenizer import Tokenizer

KIB = 1024
ANSWER_TOKENS, STREAMED_TOKENS = 16, 64
FEW, MANY = 16, 64  # connections
STEP_S = 0.002
BODIES: dict[str, MakeConversation] = {
    "1 KiB": lambda seed: Conversation(KIB, seed, max_tokens=ANSWER_TOKENS),
    "32 KiB, a chat's next turn": lambda seed: Conversation(32 * KIB, seed, max_tokens=ANSWER_TOKENS),
    "32 KiB, all new": lambda seed: Conversation(32 * KIB, seed, max_tokens=ANSWER_TOKENS, all_new=True),
}


def stream(seed: int) -> Conversation:
    return Conversation(KIB, seed, max_tokens=STREAMED_TOKENS, stream=True)


class Latencies:
    """Of everybody's requests, one connection each."""

    def __init__(self, timings: dict[str, list[Timing]], which: Callable[[Timing], float]) -> None:
        self._seconds = {name: sorted(map(which, each)) for name, each in timings.items()}

    def row(self, contestant: Contestant) -> str:
        """Median, 99th percentile, and by how much the median is above that of the mock alone, in milliseconds."""
        own = self._seconds[contestant.name]
        added = statistics.median(own) - statistics.median(self._seconds[contestant.floor])
        shown = "-" if contestant.floor == contestant.name else f"{1e3 * added:.2f}"
        return f"{1e3 * statistics.median(own):.2f} | {1e3 * own[len(own) * 99 // 100]:.2f} | {shown}"


class CpuColumn:
    """Microseconds of the router's process, and as a multiple of ours, which comes first."""

    def __init__(self) -> None:
        self._ours_s: float | None = None

    def cell(self, cpu_s: float | None) -> str:
        if cpu_s is None:
            return "- | -"
        self._ours_s = self._ours_s or cpu_s
        return f"{1e6 * cpu_s:.0f} | {cpu_s / self._ours_s:.2f}"


async def whole_answers(everybody: Sequence[Contestant], rounds: int, seconds: float) -> None:
    for name, make in BODIES.items():
        latencies = Latencies(await take_turns(everybody, make, rounds), lambda timing: timing.total_s)
        print(f"\n## {name}: whole answers of {ANSWER_TOKENS} tokens, given at once\n")
        print(f"| | ms, 1 connection: p50 | p99 | added p50 | req/s, {MANY} connections | CPU us | x |")
        print("|---|---|---|---|---|---|---|")
        cpu = CpuColumn()
        for each in everybody:
            load = await _load(each, make, MANY, seconds)
            rest = "- | - | -" if load is None else f"{load.per_s:,.0f} | {cpu.cell(load.cpu_s)}"
            print(f"| {each.name} | {latencies.row(each)} | {rest} |", flush=True)
    print("\n| | resident MB |\n|---|---|")
    for each in everybody:
        if each.process is not None:
            print(f"| {each.name} | {each.process.resident_bytes / 2**20:.0f} |")


async def first_chunks(everybody: Sequence[Contestant], rounds: int, seconds: float) -> None:
    latencies = Latencies(await take_turns(everybody, stream, rounds), lambda timing: timing.first_s)
    print(f"\n## First chunk on a reused connection, then one every {1e3 * STEP_S:.0f} ms\n")
    print(f"| | ms, 1 connection: p50 | p99 | added p50 | p50, {FEW} connections |\n|---|---|---|---|---|")
    for each in everybody:
        load = await _load(each, stream, FEW, seconds)
        few = "-" if load is None else f"{1e3 * load.first_s:.2f}"
        print(f"| {each.name} | {latencies.row(each)} | {few} |", flush=True)


async def many_streams(everybody: Sequence[Contestant], seconds: float) -> None:
    print(f"\n## {MANY} streams of {STREAMED_TOKENS} tokens, at most {MANY / STEP_S:,.0f} tokens/s\n")
    print("| | tokens/s | CPU us a token | x |\n|---|---|---|---|")
    cpu = CpuColumn()
    for each in everybody:
        load = await _load(each, stream, MANY, seconds)
        if load is not None:
            cpu_s = None if load.cpu_s is None else load.cpu_s / STREAMED_TOKENS
            print(f"| {each.name} | {load.per_s * STREAMED_TOKENS:,.0f} | {cpu.cell(cpu_s)} |", flush=True)


async def _load(contestant: Contestant, make: MakeConversation, num: int, seconds: float) -> Load | None:
    """None for the engine alone: its client has one request at a time."""
    return None if contestant.name == ENGINE else await under_load(contestant, make, num, seconds)


async def measure(peers: Path | None, rounds: int, seconds: float) -> None:
    tokenizer = Tokenizer.from_directory(resolve_model(MODEL).directory)
    with contestants(("--at-once",), peers, tokenizer) as everybody:
        await whole_answers(everybody, rounds, seconds)
    with contestants(("--step-s", str(STEP_S)), peers, tokenizer) as everybody:
        await first_chunks(everybody, rounds // 4, seconds)
        await many_streams(everybody, seconds)
    missing = [name for name in PEERS if not any(each.name.startswith(name) for each in everybody)]
    if missing:
        print(
            f"\nNot compared with {' and '.join(missing)}: give --peers a virtual environment that has them."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, help="virtual environment with sglang-router and smg in it")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    options = parser.parse_args()
    shape = f"{MODEL}'s tokenizer; mocks answer"
    print_header("Router", model=shape, rounds=options.rounds, seconds=options.seconds)
    print(f"`x` is a multiple of {OURS}'s CPU time. All processes share the cores named above.")
    uvloop.run(measure(options.peers, options.rounds, options.seconds))
    print(f"\nLoad at the end: {os.getloadavg()[0]:.1f}, this benchmark's own included.")


if __name__ == "__main__":
    main()
