"""How long a restarted router takes until it is exact: 8 replicas with 100,000 blocks each, over real sockets.

    python benchmarks/many_routers.py

The replicas (real engines behind real servers; the model is arithmetic) and a router that stays connected run in one
process, the router that restarts in another: the time is from its first connection to all eight SYNCED. Meanwhile the
router that stays streams; its longest gap between two tokens is set beside the one without a restart.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

from report import print_header

from protocol.block_hash import SECRET_BYTES, BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import Identity, Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens, unpack_tokens
from router.prefixes.prefix_index import IndexState
from router.requests.routed_request import RoutedRequest
from router.router import Router
from router.router_config import RouterConfig
from workers.engine import Engine
from workers.runner import RunnerFacts
from workers.scheduling.scheduler import SchedulerConfig
from workers.server import ReplicaServer
from workers.step_plan import SampledTokens, StepPlan

NUM_REPLICAS, NUM_BLOCKS, BLOCK_SIZE = 8, 100_000, 16
PROMPT_BLOCKS = 4000
STEP_S = 0.01  # of the engine that streams
ROUNDS = 5
SECRETS = DeploymentSecrets(b"h" * SECRET_BYTES, b"k" * 32, b"s" * 32)
IDENTITY = Identity("model", "model", "tokenizer")


class CountingRunner:
    """The next token is the last one plus one."""

    def __init__(self) -> None:
        self.facts = RunnerFacts(NUM_BLOCKS + 1000, BLOCK_SIZE, 200_000, 2**31 - 1, (0,))
        self.step_s = 0.0
        self.newest: dict[int, int] = {}

    def launch(self, plan: StepPlan) -> SampledTokens:
        time.sleep(self.step_s)
        last = {chunk.row: unpack_tokens(chunk.token_ids)[-1] for chunk in plan.chunks if chunk.sample}
        self.newest.update(last)
        rows = [*unpack_tokens(plan.decode_rows), *last]
        for row in rows:
            self.newest[row] += 1
        return SampledTokens([self.newest[row] for row in rows])

    def close(self) -> None: ...


def warm_engine(number: int) -> tuple[Engine, CountingRunner]:
    """Its cache is full: a tenth is everybody's, the rest its own."""
    runner = CountingRunner()
    budget = PROMPT_BLOCKS * BLOCK_SIZE
    engine = Engine(
        runner,
        SchedulerConfig(max_num_batched_tokens=budget),
        BlockHasher(SECRETS.hash_secret, BLOCK_SIZE),
    )
    num_prompts = NUM_BLOCKS // PROMPT_BLOCKS
    for place in range(num_prompts):
        first = (place if place < num_prompts // 10 else 1000 * (number + 1) + place) * budget
        prompt = pack_tokens((first + n) % 2_000_000_000 for n in range(budget))
        engine.submit(Submit(f"{number}-{place}", prompt, SamplingParams(max_tokens=1, seed=1)))
        while engine.has_work:
            engine.step()
    runner.step_s = STEP_S
    return engine, runner


@asynccontextmanager
async def served(number: int) -> AsyncIterator[ReplicaInfo]:
    engine, runner = warm_engine(number)
    fingerprint = BlockHasher(SECRETS.hash_secret, BLOCK_SIZE).fingerprint
    identity = replace(IDENTITY, block_size=BLOCK_SIZE, hash_fingerprint=fingerprint)
    facts = ReplicaFacts(str(number), 1, identity, runner.facts.max_model_len, runner.facts.num_blocks)
    async with ReplicaServer(engine, SECRETS.hello_key, facts, "127.0.0.1") as server:
        yield ReplicaInfo(str(number), ReplicaState.READY, 1, "127.0.0.1", server.port)


async def connected(name: str, replicas: list[ReplicaInfo]) -> Router:
    """Returns when every index is exact."""
    router = Router(RouterConfig(name), IDENTITY, SECRETS)
    await router.set_replicas(replicas)
    while not all(each.index is IndexState.SYNCED for each in router.status().replicas):
        await asyncio.sleep(0.01)
    return router


def restart(replicas: list[ReplicaInfo], results: Connection) -> None:
    """In a process of its own: (seconds, CPU seconds) until exact, and how many blocks the index then holds."""

    async def measure() -> tuple[float, float, int]:
        began, began_cpu = time.perf_counter(), time.process_time()
        router = await connected("restarted", replicas)
        taken, taken_cpu = time.perf_counter() - began, time.process_time() - began_cpu
        num_blocks = sum(each.num_indexed_blocks for each in router.status().replicas)
        await router.aclose()
        return taken, taken_cpu, num_blocks

    results.send(asyncio.run(measure()))


async def stream_gaps(router: Router, gaps: list[float]) -> None:
    """One long stream; the time between each two of its tokens."""
    sampling = SamplingParams(max_tokens=100_000, seed=1, ignore_eos=True)
    async with router.open(RoutedRequest("stream", pack_tokens(range(5, 100)), sampling)) as generation:
        last = time.perf_counter()
        async for _ in generation:
            now = time.perf_counter()
            gaps.append(now - last)
            last = now


async def main() -> None:
    print_header(
        "Many routers", replicas=NUM_REPLICAS, blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, rounds=ROUNDS
    )
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(served(number)) for number in range(NUM_REPLICAS)]
        stays = await connected("stays", replicas)
        gaps: list[float] = []
        streaming = asyncio.create_task(stream_gaps(stays, gaps))
        await asyncio.sleep(3.0)
        alone, num_alone = max(gaps[10:]), len(gaps)
        results = [await asyncio.to_thread(restarted_once, replicas) for _ in range(ROUNDS)]
        beside = max(gaps[num_alone:])
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        await stays.aclose()
    seconds, cpu_seconds, num_blocks = zip(*results, strict=True)
    print("| | |\n|---|---|")
    print(f"| blocks in the index | {num_blocks[0]:,} |")
    print(f"| seconds until exact, median (worst) | {statistics.median(seconds):.2f} ({max(seconds):.2f}) |")
    print(f"| CPU seconds of the router until then, median | {statistics.median(cpu_seconds):.2f} |")
    print(f"| longest gap in another router's stream, alone | {1e3 * alone:.0f} ms |")
    print(f"| longest gap in another router's stream, beside {ROUNDS} restarts | {1e3 * beside:.0f} ms |")


def restarted_once(replicas: list[ReplicaInfo]) -> tuple[float, float, int]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=restart, args=(replicas, sender))
    process.start()
    result: tuple[float, float, int] = receiver.recv()
    process.join()
    return result


if __name__ == "__main__":
    asyncio.run(main())
