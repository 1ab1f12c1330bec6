"""What prefix caching costs where nothing is ever hit: counted in calls, since seconds are not to be trusted here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest

from protocol.block_hash import SECRET_BYTES, BlockHasher
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.runner import RunnerFacts
from workers.scheduling.request import Request
from workers.scheduling.scheduler import Scheduler, SchedulerConfig
from workers.step_plan import SampledTokens

BLOCK_SIZE = 16
NUM_PROMPT_TOKENS, NUM_GENERATED = 320, 64
NUM_BLOCKS = (NUM_PROMPT_TOKENS + NUM_GENERATED - 1) // BLOCK_SIZE  # full ones of one request
CALLS_PER_BLOCK = (
    28  # Python's and C's, over its life: hash, register, log, free, forget at reuse, remember, log
)


@dataclass(frozen=True, slots=True)
class CountingHasher(BlockHasher):
    hashed: list[bytes]

    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        known = len(digests)
        super(CountingHasher, self).extend(digests, tokens, extra)
        self.hashed.extend(digests[known:])

    def next_digest(self, parent: bytes | None, tokens: bytes, extra: bytes = b"") -> bytes:
        self.hashed.append(super(CountingHasher, self).next_digest(parent, tokens, extra))
        return self.hashed[-1]


def serve(requests: range, enabled: bool, hasher: BlockHasher) -> Scheduler:
    """Unique prompts, one after the other, through a pool that is full of their predecessors."""
    config = SchedulerConfig(max_num_seqs=1, enable_prefix_caching=enabled)
    scheduler = Scheduler(config, RunnerFacts(64, BLOCK_SIZE, 1024, 100_000, ()), hasher)
    sampling = SamplingParams(max_tokens=NUM_GENERATED, seed=0)
    for number in requests:
        prompt = pack_tokens(range(number * NUM_PROMPT_TOKENS, (number + 1) * NUM_PROMPT_TOKENS))
        scheduler.add(Request(str(number), prompt, sampling))
        while (plan := scheduler.schedule()) is not None:
            scheduler.complete(SampledTokens([number] * plan.num_drawn))
            scheduler.take_events()
    return scheduler


def count_calls(run: Callable[[], Any]) -> int:
    calls = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return calls


def test_each_block_is_hashed_once_in_its_life() -> None:
    hasher = CountingHasher(bytes(SECRET_BYTES), BLOCK_SIZE, [])
    scheduler = serve(range(10), True, hasher)
    assert scheduler.load().cache.hit == 0
    assert len(hasher.hashed) == len(set(hasher.hashed)) == 10 * NUM_BLOCKS


def test_with_caching_off_nothing_is_hashed() -> None:
    hasher = CountingHasher(bytes(SECRET_BYTES), BLOCK_SIZE, [])
    scheduler = serve(range(3), False, hasher)
    assert hasher.hashed == [] and scheduler.load().cache.queried == 0


def test_caching_adds_a_bounded_number_of_calls_per_block() -> None:
    hasher = BlockHasher(bytes(SECRET_BYTES), BLOCK_SIZE)
    cached, plain = (count_calls(lambda on=on: serve(range(20), on, hasher)) for on in (True, False))
    added = (cached - plain) / (20 * NUM_BLOCKS)
    assert 0 < added <= CALLS_PER_BLOCK, f"{added:.1f} calls a block"


@pytest.mark.parametrize("num_tokens", (64, 6400))
def test_a_cold_look_up_ends_at_the_first_block_however_long_the_prompt(num_tokens: int) -> None:
    hasher = BlockHasher(bytes(SECRET_BYTES), BLOCK_SIZE)
    scheduler = serve(range(3), True, hasher)
    kv = scheduler.kv
    prompt = pack_tokens(range(900_000, 900_000 + num_tokens))
    digests = hasher.digests(prompt)
    blocks = (prompt[at : at + 4 * BLOCK_SIZE] for at in range(0, len(prompt), 4 * BLOCK_SIZE))
    assert count_calls(lambda: kv.prefixes.match(digests, blocks, b"")) < 10
