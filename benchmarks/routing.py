"""What one routing decision costs the router: hash, match and decide for a long prompt, and the intake of KV events.

    python benchmarks/routing.py

Everything is single-threaded and given as a multiple of one bare xxh3 call per block, measured in the same run. The
replicas are busy: each has some prefills that have not ended.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import xxhash
from report import print_header

from protocol.block_hash import SECRET_BYTES, BlockHasher, join_digests
from protocol.events import Removed, Stored
from protocol.tokens import pack_tokens
from router.policy import RoutingRequest, choose
from router.prefill_board import PrefillBoard
from router.prefix_index import PrefixIndex

NUM_TOKENS, BLOCK_SIZE, NUM_REPLICAS, SEED = 32_000, 16, 64, 0
MANY_REPLICAS = 512
UNFINISHED = 4  # prefills of each replica
RUN_BLOCKS = 128  # of one Stored event: a prefill step of 2,048 tokens
RNG = random.Random(SEED)


def main() -> None:
    print_header("Routing", prompt_tokens=NUM_TOKENS, block_size=BLOCK_SIZE, replicas=NUM_REPLICAS, seed=SEED)
    tokens = pack_tokens(random.Random(SEED).choices(range(2000), k=NUM_TOKENS))
    hasher = BlockHasher(b"h" * SECRET_BYTES, BLOCK_SIZE)
    digests = hasher.digests(tokens)
    index = filled_index(digests)
    matched = index.match(digests)
    some, many = filled_board(NUM_REPLICAS), filled_board(MANY_REPLICAS)
    bare = median_s(lambda: bare_hashes(tokens))
    rows = {
        "bare xxh3 calls": bare,
        "hash": median_s(lambda: hasher.digests(tokens)),
        "match": median_s(lambda: index.match(digests)),
        "hash, match and decide": median_s(lambda: decide(some, index.match(hasher.digests(tokens)))),
        f"decide, {NUM_REPLICAS} replicas": median_s(lambda: decide(some, matched)),
        f"decide, {MANY_REPLICAS} replicas": median_s(lambda: decide(many, matched)),
        f"decide, {MANY_REPLICAS} replicas, cold": median_s(lambda: decide(many, {})),
        "expect, then withdraw": median_s(lambda: index.withdraw(index.expect("r0", digests, 0.0))),
        "store, then remove": median_s(lambda: store_and_remove(index, digests)),
    }
    print(f"| for {len(digests)} blocks | ms | x bare xxh3 |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {1e3 * seconds:.3f} | {seconds / bare:.1f} |")
    num_changes = 2 * len(digests)
    per_s = num_changes / rows["store, then remove"]
    print(
        f"\nEvents: {per_s:,.0f} blocks/s, {rows['store, then remove'] / num_changes / (bare / len(digests)):.1f} x"
    )


def filled_index(digests: list[bytes]) -> PrefixIndex:
    """Replica number i holds i/64 of the prompt: the walk drops one every few blocks."""
    index = PrefixIndex()
    for number in range(NUM_REPLICAS):
        replica = f"r{number}"
        index.connect(replica)
        index.begin_snapshot(replica)
        index.add_to_snapshot(replica, join_digests(digests[: number * len(digests) // (NUM_REPLICAS - 1)]))
        index.end_snapshot(replica)
    return index


def bare_hashes(tokens: bytes) -> None:
    for start in range(0, len(tokens), 4 * BLOCK_SIZE):
        xxhash.xxh3_128_digest(tokens[start : start + 4 * BLOCK_SIZE])


def filled_board(num_replicas: int) -> PrefillBoard:
    """Sizes of all kinds; half of what was sent has ended its prefill and decodes."""
    board, rng = PrefillBoard(), random.Random(SEED)
    for number in range(num_replicas):
        board.add(f"r{number}")
        for each in range(2 * UNFINISHED):
            tokens = rng.choice([900, 4_000, 12_000, 60_000])
            board.dispatched(f"r{number}", str(each), num_uncached=tokens, num_cached=0, now_s=rng.random())
            if each % 2:
                board.prefilled(f"r{number}", str(each))
    return board


def decide(board: PrefillBoard, matched: Mapping[str, int]) -> None:
    loads = board.columns(2.0)
    depths = [BLOCK_SIZE * matched.get(name, 0) for name in loads.replicas]
    choose(RoutingRequest(NUM_TOKENS, depths), loads, RNG)


def store_and_remove(index: PrefixIndex, digests: list[bytes]) -> None:
    for start in range(0, len(digests), RUN_BLOCKS):
        index.apply("r0", Stored(join_digests(digests[start : start + RUN_BLOCKS]), None))
    for start in range(0, len(digests), RUN_BLOCKS):
        index.apply("r0", Removed(join_digests(digests[start : start + RUN_BLOCKS])))


def median_s(work: Callable[[], object], rounds: int = 101) -> float:
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


if __name__ == "__main__":
    main()
