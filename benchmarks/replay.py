"""Replays the head of a trace against a real system of two replicas, and writes what was measured.

    python benchmarks/replay.py --trace conversation.jsonl REPORT.json [--system sapling|modelled]
    trunkline simulate --fit REPORT.json

sapling: `trunkline serve` with the built-in model and clients that stream over HTTP on reused connections. Prompts and
answers are divided by --scale, blocks of the trace with them, so that each still is one block of the replicas. A pause
of the machine counts as the system's: run it on one that is otherwise idle.
modelled: routers and replicas of the product in this process, on devices whose steps only take the time that the
default service model says; the trace as it is. Times are multiplied by --stretch in both.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from report import print_header
from simulated_devices import ModelledSystem, modelled_system
from streaming_clients import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, MODEL, Clients, warm_up
from system import running_system

from simulator.measurement import Measurement, write_measurement
from simulator.trace import BLOCK_TOKENS, TraceRequest, read_trace

REPLICAS = 2
MAX_MODEL_LEN = 2048
TOKEN_KV_BYTES = 2 * 4 * 4 * 32 * 2  # keys and values, layers, heads, their size, bf16


def scaled(requests: Sequence[TraceRequest], scale: int) -> list[TraceRequest]:
    """Those that the model's context holds."""
    size, chosen = BLOCK_TOKENS // scale, list[TraceRequest]()
    for request in requests:
        num_tokens = max(1, request.num_tokens // scale)
        num_output = max(1, request.num_output_tokens // scale)
        if num_tokens + num_output <= MAX_MODEL_LEN:
            blocks = request.blocks[: -(-num_tokens // size)]
            chosen.append(
                replace(
                    request,
                    index=len(chosen),
                    num_tokens=num_tokens,
                    num_output_tokens=num_output,
                    blocks=blocks,
                )
            )
    return chosen


def options_of_the_system(block_size: int, num_blocks: int) -> list[str]:
    sizes = {
        "--replicas": REPLICAS,
        "--num-cpus": 1,
        "--block-size": block_size,
        "--kv-cache-memory-bytes": num_blocks * block_size * TOKEN_KV_BYTES,
        "--max-model-len": MAX_MODEL_LEN,
        "--max-num-seqs": MAX_NUM_SEQS,
        "--max-num-batched-tokens": MAX_NUM_BATCHED_TOKENS,
    }
    return [MODEL, "--dtype", "bfloat16", *(str(part) for option in sizes.items() for part in option)]


def on_sapling(arguments: argparse.Namespace, requests: Sequence[TraceRequest]) -> Measurement:
    size = BLOCK_TOKENS // arguments.scale
    with running_system(*options_of_the_system(size, arguments.blocks)) as system:
        warm_up(system.url, size)
        measured, facts = Clients(system.url, size).replay(scaled(requests, arguments.scale))
        return Measurement(size, facts, measured)


async def on_modelled_devices(arguments: argparse.Namespace, requests: Sequence[TraceRequest]) -> Measurement:
    system = ModelledSystem(REPLICAS, num_blocks=arguments.blocks, policy=arguments.policy)
    async with modelled_system(system) as routers:
        measured, facts = await routers.replay(requests)
        return Measurement(BLOCK_TOKENS, facts, measured)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--system", choices=("sapling", "modelled"), default="sapling")
    parser.add_argument("--policy", choices=("trunkline", "round-robin"), default="trunkline")
    parser.add_argument("--requests", type=int, default=300, help="of the trace's first (default: 300)")
    parser.add_argument("--scale", type=int, default=32, help="a power of two, for sapling (default: 32)")
    parser.add_argument("--stretch", type=float, default=1.0)
    parser.add_argument(
        "--blocks", type=int, help="of each replica's pool (default: as many as 1000 of the trace)"
    )
    arguments = parser.parse_args()
    if arguments.system == "sapling" and arguments.policy != "trunkline":
        parser.error("a whole system routes as it does: --policy is for --system modelled")
    if arguments.blocks is None:
        arguments.blocks = 1000 * (
            1 if arguments.system == "sapling" else BLOCK_TOKENS // ModelledSystem.block_size
        )
    return arguments


def main() -> None:
    arguments = parsed()
    trace = read_trace(arguments.trace)[: arguments.requests]
    requests = [replace(each, arrival_s=arguments.stretch * each.arrival_s) for each in trace]
    print_header("Replay", **{name: value for name, value in vars(arguments).items() if name != "trace"})
    if arguments.system == "sapling":
        measurement = on_sapling(arguments, requests)
    else:
        measurement = asyncio.run(on_modelled_devices(arguments, requests))
    write_measurement(arguments.report, measurement)
    measured = measurement.requests
    mean_s = sum(each.ttft_s for each in measured) / len(measured)
    hits = sum(each.cached_tokens for each in measured) / sum(each.num_tokens for each in measured)
    print(f"{len(measured)} requests, mean TTFT {1e3 * mean_s:.1f} ms, {100 * hits:.1f} % hits")


if __name__ == "__main__":
    main()
