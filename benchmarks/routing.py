"""What one routing decision costs the router: hash, match and decide, the intake of KV events, the index's memory.

    python benchmarks/routing.py

Everything is single-threaded, in CPU time, and given as a multiple of one bare xxh3 call per block, measured in the
same run; the intake of events also as one of a plain dict insert. The replicas are busy: each has some prefills that
have not ended. Memory is what a fresh process's resident set grows by.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import xxhash
from report import print_header

from protocol.block_hash import DIGEST_BYTES, SECRET_BYTES, BlockHasher, join_digests
from protocol.events import Removed, Stored
from protocol.tokens import pack_tokens
from router.prefixes.prefix_index import PrefixIndex
from router.routing.loads import RoutingRequest
from router.routing.policy import choose
from router.routing.prefill_board import PrefillBoard

NUM_TOKENS, BLOCK_SIZE, NUM_REPLICAS, SEED = 32_000, 16, 64, 0
SHORT_TOKENS = 1_000
# (replicas, blocks each, replicas that hold the same ones); a dict is at its largest a block after it has grown.
HOLDINGS = [
    (8, 100_000, 1),
    (8, 100_000, 8),
    (8, 87_400, 1),
    (64, 20_000, 1),
    (64, 20_000, 4),
    (64, 20_000, 64),
]
LOST_BLOCKS = 100_000
MANY_REPLICAS = 512
UNFINISHED = 4  # prefills of each replica
CHUNK_BLOCKS = 16_384  # of a snapshot
RUN_BLOCKS = 128  # of one Stored event: a prefill step of 2,048 tokens
RNG = random.Random(SEED)


def main() -> None:
    print_header("Routing", prompt_tokens=NUM_TOKENS, block_size=BLOCK_SIZE, replicas=NUM_REPLICAS, seed=SEED)
    tokens = pack_tokens(random.Random(SEED).choices(range(2000), k=NUM_TOKENS))
    hasher = BlockHasher(b"h" * SECRET_BYTES, BLOCK_SIZE)
    decisions(tokens, hasher)
    losses()
    memory()


def decisions(tokens: bytes, hasher: BlockHasher) -> None:
    short = tokens[: 4 * SHORT_TOKENS]
    digests = hasher.digests(tokens)
    index, of_short = filled_index(digests), filled_index(hasher.digests(short))
    shallow = filled_index(digests, num_depths=4)
    matched = index.match(digests)
    some, many = filled_board(NUM_REPLICAS), filled_board(MANY_REPLICAS)
    bare = median_s(lambda: bare_hashes(tokens))
    rows = {
        "bare xxh3 calls": bare,
        "hash": median_s(lambda: hasher.digests(tokens)),
        "match, 64 depths": median_s(lambda: index.match(digests)),
        "match, 4 depths": median_s(lambda: shallow.match(digests)),
        "hash, match and decide": median_s(lambda: decide(some, index, hasher, tokens)),
        f"the same for {SHORT_TOKENS} tokens": median_s(lambda: decide(some, of_short, hasher, short)),
        f"decide, {NUM_REPLICAS} replicas": median_s(lambda: choose_from(some, matched)),
        f"decide, {MANY_REPLICAS} replicas": median_s(lambda: choose_from(many, matched)),
        f"decide, {MANY_REPLICAS} replicas, cold": median_s(lambda: choose_from(many, {})),
        "expect, then withdraw": median_s(lambda: index.withdraw(index.expect("r0", digests, 0.0))),
        "store, then remove": median_s(lambda: store_and_remove(index, digests)),
        "plain dict inserts": median_s(lambda: plain_inserts(digests)),
    }
    print(f"| for {len(digests)} blocks | CPU ms | x bare xxh3 |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {1e3 * seconds:.3f} | {seconds / bare:.1f} |")
    num_changes = 2 * len(digests)
    each_s = rows["store, then remove"] / num_changes
    inserts = each_s / (rows["plain dict inserts"] / len(digests))
    print(f"\nEvents: {1 / each_s:,.0f} blocks/s, {each_s / (bare / len(digests)):.1f} x bare xxh3,", end=" ")
    print(f"{inserts:.1f} x a plain dict insert.")


def losses() -> None:
    """A replica goes while another one's events go on coming, a block at a time."""
    index = holding(2, LOST_BLOCKS, 1)
    losing = elapsed_s(lambda: index.disconnect("r1"))
    rng, changes = random.Random(SEED), list[float]()
    while index.num_entries > LOST_BLOCKS + len(changes):
        changes.append(elapsed_s(lambda: index.apply("r0", Stored(rng.randbytes(DIGEST_BYTES), None))))
    print(
        f"\nLosing a replica with {LOST_BLOCKS:,} blocks: {1e6 * losing:.0f} us. It was swept out by the next",
        end=" ",
    )
    print(f"{len(changes):,} changes, {1e6 * statistics.median(changes):.0f} us each (median).")


def memory() -> None:
    print(
        "\n| replicas | blocks each | replicas a block | bytes a pair | by the index's account |\n|---|---|---|---|---|"
    )
    for num_replicas, num_blocks, sharing in HOLDINGS:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            grown, counted = fresh.apply(resident_bytes, (num_replicas, num_blocks, sharing))
        pairs = num_replicas * num_blocks
        print(
            f"| {num_replicas} | {num_blocks:,} | {sharing} | {grown / pairs:.1f} | {counted / pairs:.1f} |"
        )


def resident_bytes(num_replicas: int, num_blocks: int, sharing: int) -> tuple[int, int]:
    """What this process grows by, and what the index says."""
    gc.collect()
    before = resident()
    index = holding(num_replicas, num_blocks, sharing)
    gc.collect()
    return resident() - before, index.num_bytes


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def holding(num_replicas: int, num_blocks: int, sharing: int) -> PrefixIndex:
    """Groups of `sharing` replicas hold the same blocks."""
    index = PrefixIndex()
    for number in range(num_replicas):
        rng, replica = random.Random(number // sharing), f"r{number}"
        index.connect(replica)
        index.begin_snapshot(replica)
        for start in range(0, num_blocks, CHUNK_BLOCKS):
            size = min(CHUNK_BLOCKS, num_blocks - start)
            index.add_to_snapshot(replica, rng.randbytes(DIGEST_BYTES * size))
        index.end_snapshot(replica)
    return index


def filled_index(digests: list[bytes], num_depths: int = NUM_REPLICAS) -> PrefixIndex:
    """Of 64 depths, replica number i holds i/63 of the prompt: the walk loses one every few blocks."""
    index = PrefixIndex()
    for number in range(NUM_REPLICAS):
        replica = f"r{number}"
        index.connect(replica)
        index.begin_snapshot(replica)
        depth = number % num_depths * len(digests) // (num_depths - 1)
        index.add_to_snapshot(replica, join_digests(digests[:depth]))
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


def decide(board: PrefillBoard, index: PrefixIndex, hasher: BlockHasher, tokens: bytes) -> None:
    choose_from(board, index.match(hasher.digests(tokens)), len(tokens) // 4)


def choose_from(board: PrefillBoard, matched: Mapping[str, int], num_tokens: int = NUM_TOKENS) -> None:
    loads = board.columns(2.0)
    depths = [BLOCK_SIZE * matched.get(name, 0) for name in loads.replicas]
    choose(RoutingRequest(num_tokens, depths), loads, RNG)


def store_and_remove(index: PrefixIndex, digests: list[bytes]) -> None:
    for start in range(0, len(digests), RUN_BLOCKS):
        index.apply("r0", Stored(join_digests(digests[start : start + RUN_BLOCKS]), None))
    for start in range(0, len(digests), RUN_BLOCKS):
        index.apply("r0", Removed(join_digests(digests[start : start + RUN_BLOCKS])))


def plain_inserts(digests: list[bytes]) -> None:
    plain: dict[bytes, int] = {}
    for digest in digests:
        plain[digest] = 1


def elapsed_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def median_s(work: Callable[[], object], rounds: int = 101) -> float:
    return statistics.median(elapsed_s(work) for _ in range(rounds))


if __name__ == "__main__":
    main()
