"""Ten thousand requests through one scheduler: each is answered, and memory stays where it was after the first ones."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest

from protocol.block_hash import SECRET_BYTES, BlockHasher
from protocol.messages import FinishReason
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from workers.runner import RunnerFacts
from workers.scheduling.request import Request
from workers.scheduling.scheduler import Scheduler, SchedulerConfig
from workers.step_plan import SampledTokens

NUM_REQUESTS, NUM_WARM = 10_000, 2_500
EOS = 5
FACTS = RunnerFacts(num_blocks=160, block_size=4, max_model_len=256, vocab_size=1000, eos_token_ids=(EOS,))
SAMPLING = [
    SamplingParams(n=n, max_tokens=most, seed=0, logprobs=None)
    for n in (1, 1, 1, 2)
    for most in (1, 3, 9, 20)
]


class Traffic:
    """A mix of fresh and shared prompts, priorities and cancellations, with a hundred requests waiting or running."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.scheduler = Scheduler(
            SchedulerConfig(max_num_seqs=12, max_num_batched_tokens=96),
            FACTS,
            BlockHasher(bytes(SECRET_BYTES), FACTS.block_size),
        )
        self.rows = TokenRows()
        self.wanted: Counter[str] = Counter()  # sequences still to end
        self.num_sent = self.num_ended = 0

    def send(self) -> None:
        shared = list(range(4 * self.random.randrange(5)))
        own = [self.random.randrange(6, 1000) for _ in range(self.random.randrange(1, 40))]
        name, sampling = str(self.num_sent), self.random.choice(SAMPLING)
        priority = self.random.randrange(2)
        self.scheduler.add(Request(name, pack_tokens(shared + own), sampling, priority=priority))
        self.wanted[name] = sampling.n
        self.num_sent += 1

    def cancel(self) -> None:
        name = self.random.choice(list(self.wanted))
        self.wanted[name] -= len(self.scheduler.abort(name))
        self.forget(name)

    def forget(self, name: str) -> None:
        if not self.wanted[name]:
            del self.wanted[name]
            self.num_ended += 1

    def step(self) -> None:
        plan = self.scheduler.schedule()
        assert plan is not None, "requests wait and nothing runs"
        drawn = [self.random.randrange(1000) for _ in range(plan.num_drawn)]
        step = self.scheduler.complete(SampledTokens(drawn))
        self.scheduler.take_events()
        for output in self.rows.expand(step.outputs, step.rows, step.tokens):
            if output.finish_reason is not None:
                assert output.finish_reason is not FinishReason.ABORT
                self.wanted[output.request_id] -= 1
                self.forget(output.request_id)

    def run(self, until: int) -> None:
        """Until so many have been sent and all have ended."""
        while self.num_sent < until or self.wanted:
            while self.num_sent < until and len(self.wanted) < 100:
                self.send()
            self.step()
            if self.num_sent % 50 == 0 and self.wanted:
                self.cancel()


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def allocated_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_ten_thousand_requests_are_answered_in_bounded_memory(traced: None) -> None:
    traffic = Traffic()
    traffic.run(NUM_WARM)
    before = allocated_bytes()
    traffic.run(NUM_REQUESTS)
    assert traffic.num_ended == NUM_REQUESTS
    assert traffic.scheduler.load().num_preemptions > 0
    traffic.scheduler.check_integrity()
    assert allocated_bytes() < 1.1 * before
