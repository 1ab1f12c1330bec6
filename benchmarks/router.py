"""What the HTTP path costs: latency, throughput, streams and CPU time of our router, beside other routers'.

    python -m venv DIR && DIR/bin/pip install sglang-router smg       # not needed, and none of our dependencies
    python benchmarks/router.py [--peers DIR] [--rounds 200] [--seconds 5]

Our router stands before mock engines that speak the real data plane; the others before mock backends that speak
HTTP. "Directly" is the same client at a mock itself. Client, router and mocks share the machine's cores, so CPU time a
request, of the router's process alone, is the figure to compare; wall-clock time is shown next to it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop
from report import print_header
from router_parts.clients import Timing
from router_parts.contestants import Contestant, contestants
from router_parts.conversation import Conversation
from router_parts.deployment import MODEL

from protocol.model_source import resolve_model
from router.text.tokenizer import Tokenizer

KIB = 1024
TURN = 10  # requests: long enough to be warm, short enough for noise to meet all alike
MAX_TOKENS, STREAMED_TOKENS = 16, 64
FEW_CONNECTIONS, MANY_CONNECTIONS = 16, 64
FIRST_CHUNK_STEP_S, FULL_STREAM_STEP_S = 0.002, 0.002
BODIES: dict[str, Callable[[int], Conversation]] = {
    "1 KiB": lambda seed: Conversation(KIB, seed, max_tokens=MAX_TOKENS),
    "32 KiB": lambda seed: Conversation(32 * KIB, seed, max_tokens=MAX_TOKENS),
    "32 KiB, all new": lambda seed: Conversation(32 * KIB, seed, max_tokens=MAX_TOKENS, all_new=True),
}


def stream(seed: int) -> Conversation:
    return Conversation(KIB, seed, max_tokens=STREAMED_TOKENS, stream=True)


@dataclass(frozen=True, slots=True)
class Load:
    """What one contestant did under load."""

    per_s: float  # answers
    cpu_s: float | None  # of the router, an answer
    first_s: Sequence[float]


async def take_turns(
    contenders: Sequence[Contestant], make: Callable[[int], Conversation], rounds: int
) -> dict[str, list[Timing]]:
    """One connection each, asked in turns of `TURN` requests; everybody's first turn warms up."""
    timings: dict[str, list[Timing]] = {each.name: [] for each in contenders}
    async with AsyncExitStack() as stack:
        clients = {each.name: await stack.enter_async_context(each.connect(make(1))) for each in contenders}
        for _ in range(1 + max(1, rounds // TURN)):
            for name, client in clients.items():
                timings[name] += [await client.ask() for _ in range(TURN)]
    return {name: each[TURN:] for name, each in timings.items()}


async def under_load(
    contender: Contestant, make: Callable[[int], Conversation], connections: int, seconds: float
) -> Load:
    """Every connection asks again as soon as it is answered. The first fifth of the time warms up."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(contender.connect(make(seed))) for seed in range(connections)
        ]
        answers: list[Timing] = []

        async def ask_until(end: float, client: int) -> None:
            while time.perf_counter() < end:
                answers.append(await clients[client].ask())

        async def together(duration_s: float) -> float:
            began = time.perf_counter()
            await asyncio.gather(*(ask_until(began + duration_s, client) for client in range(connections)))
            return time.perf_counter() - began

        await together(seconds / 5)
        answers.clear()
        cpu_before = contender.process.cpu_s if contender.process else 0.0
        elapsed_s = await together(seconds)
        cpu_s = contender.process.cpu_s - cpu_before if contender.process else None
    num = len(answers)
    return Load(num / elapsed_s, None if cpu_s is None else cpu_s / num, [each.first_s for each in answers])


async def whole_answers(contenders: Sequence[Contestant], rounds: int, seconds: float) -> None:
    print(f"## Whole answers of {MAX_TOKENS} tokens, given at once\n")
    for name, make in BODIES.items():
        timings = await take_turns(contenders, make, rounds)
        floors = {each: median_s([timing.total_s for timing in timings[each]]) for each in timings}
        print(
            f"| {name} | ms, 1 connection: p50 | p99 | added p50 | req/s, {MANY_CONNECTIONS} connections |"
            " CPU us a request |\n|---|---|---|---|---|---|"
        )
        for each in contenders:
            totals = [timing.total_s for timing in timings[each.name]]
            added = (
                "-" if each.floor == each.name else f"{1e3 * (floors[each.name] - floors[each.floor]):.2f}"
            )
            row = f"| {each.name} | {1e3 * median_s(totals):.2f} | {1e3 * p99(totals):.2f} | {added} |"
            if each.name == "engine directly":
                print(f"{row} - | - |")
                continue
            load = await under_load(each, make, MANY_CONNECTIONS, seconds)
            print(f"{row} {load.per_s:,.0f} | {microseconds(load.cpu_s)} |", flush=True)
        print()
    print("| router | resident MB |\n|---|---|")
    for each in contenders:
        if each.process is not None:
            print(f"| {each.name} | {each.process.resident_bytes / 2**20:.0f} |")


async def first_chunks(contenders: Sequence[Contestant], rounds: int, seconds: float) -> None:
    print(
        f"\n## First chunk on a reused connection: {STREAMED_TOKENS} chunks, {1e3 * FIRST_CHUNK_STEP_S:.0f} ms apart\n"
    )
    timings = await take_turns(contenders, stream, rounds // 4)
    floors = {each: median_s([timing.first_s for timing in timings[each]]) for each in timings}
    print(
        f"| | ms, 1 connection: p50 | p99 | added p50 | p50, {FEW_CONNECTIONS} connections |\n|---|---|---|---|---|"
    )
    for each in contenders:
        firsts = [timing.first_s for timing in timings[each.name]]
        added = "-" if each.floor == each.name else f"{1e3 * (floors[each.name] - floors[each.floor]):.2f}"
        few = "-"
        if each.name != "engine directly":
            few = f"{1e3 * median_s((await under_load(each, stream, FEW_CONNECTIONS, seconds)).first_s):.2f}"
        print(
            f"| {each.name} | {1e3 * median_s(firsts):.2f} | {1e3 * p99(firsts):.2f} | {added} | {few} |",
            flush=True,
        )


async def full_streams(contenders: Sequence[Contestant], seconds: float) -> None:
    offered = MANY_CONNECTIONS / FULL_STREAM_STEP_S
    print(
        f"\n## {MANY_CONNECTIONS} streams, {1e3 * FULL_STREAM_STEP_S:.0f} ms a step: at most {offered:,.0f} tokens/s\n"
    )
    print("| | tokens/s | CPU us a token |\n|---|---|---|")
    for each in contenders:
        if each.name == "engine directly":
            continue
        load = await under_load(each, stream, MANY_CONNECTIONS, seconds)
        cpu_s = None if load.cpu_s is None else load.cpu_s / STREAMED_TOKENS
        print(f"| {each.name} | {load.per_s * STREAMED_TOKENS:,.0f} | {microseconds(cpu_s)} |", flush=True)


def median_s(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) * 99 // 100]


def microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.0f}"


async def measure(peers: Path | None, rounds: int, seconds: float) -> None:
    tokenizer = Tokenizer.from_directory(resolve_model(MODEL).directory)
    with contestants(("--at-once",), peers, tokenizer) as contenders:
        await whole_answers(contenders, rounds, seconds)
    with contestants(("--step-s", str(FIRST_CHUNK_STEP_S)), peers, tokenizer) as contenders:
        await first_chunks(contenders, rounds, seconds)
    with contestants(("--step-s", str(FULL_STREAM_STEP_S)), peers, tokenizer) as contenders:
        await full_streams(contenders, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, help="virtual environment with sglang-router and smg in it")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    options = parser.parse_args()
    print_header(
        "Router",
        model=f"none: mocks answer; tokenizer of {MODEL}",
        rounds=options.rounds,
        seconds=options.seconds,
    )
    uvloop.run(measure(options.peers, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
