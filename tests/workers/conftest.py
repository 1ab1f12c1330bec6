"""A runner whose memory is checked at every read, and small builders around the scheduler and the KV cache.

Fixtures are the only way in, since test folders are no packages.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.events import KvEvent
from protocol.messages import SequenceOutput
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens, unpack_tokens
from workers.kv.block_table import BlockTable
from workers.kv.kv_cache import KvCache
from workers.runner import RunnerFacts
from workers.scheduling.admission import AdmissionOrder
from workers.scheduling.request import Request
from workers.scheduling.scheduler import Scheduler, SchedulerConfig
from workers.step_plan import RowStart, SampledTokens, StepPlan

SECRET = bytes(range(24))
VOCABULARY = 1000


def content_after(content: int, token: int) -> int:
    """Stands for the KV of a token after all tokens before it."""
    return (content * 1_000_003 + token + 1) % (2**61 - 1)


def token_after(content: int, seed: int, position: int) -> int:
    """The token that the fake model draws: it depends on the whole prefix, the seed and the position."""
    return content_after(content ^ (seed % 2**61), position) % VOCABULARY


@dataclass
class Row:
    tokens: list[int]
    seed: int
    blocks: list[int] = field(default_factory=list)


@dataclass
class RowStep:
    """One row's share of a step, decode or chunk."""

    row: int
    start: int
    token_ids: list[int]
    sample: bool


class MemoryRunner:
    """Keeps what each slot of each block holds, and asserts that every read finds its own prefix there."""

    def __init__(self, facts: RunnerFacts) -> None:
        self.facts = facts
        self.rows: dict[int, Row] = {}
        self.slots: dict[tuple[int, int], int] = {}
        self.num_computed = 0
        self.steps: list[list[RowStep]] = []

    def launch(self, plan: StepPlan) -> SampledTokens:
        for row in plan.ends:
            del self.rows[row]
        for start in plan.starts:
            self._start(start)
        for source, destination in plan.copies:
            for offset in range(self.facts.block_size):
                self.slots[destination, offset] = self.slots.get((source, offset), -1)
        for row_id, blocks in plan.grown:
            self.rows[row_id].blocks += blocks
        steps = [*self._decodes(plan), *self._chunks(plan)]
        self.steps.append(steps)
        self._write(steps)
        return self._read(steps)

    def _decodes(self, plan: StepPlan) -> Iterator[RowStep]:
        for row, start in zip(
            unpack_tokens(plan.decode_rows), unpack_tokens(plan.decode_starts), strict=True
        ):
            yield RowStep(row, start, [self.rows[row].tokens[-1]], True)

    def _chunks(self, plan: StepPlan) -> Iterator[RowStep]:
        for chunk in plan.chunks:
            yield RowStep(chunk.row, chunk.start, list(unpack_tokens(chunk.token_ids)), chunk.sample)

    def close(self) -> None:
        self.rows.clear()

    def _start(self, start: RowStart) -> None:
        assert start.row not in self.rows, "a row was given out twice"
        tokens = [*unpack_tokens(start.prompt), *unpack_tokens(start.generated)]
        self.rows[start.row] = Row(tokens, start.seed)

    def _slot(self, row: Row, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self.facts.block_size)
        assert row.blocks[block] != 0, "the null block is in a table"
        return row.blocks[block], offset

    def _contents(self, row: Row, end: int) -> list[int]:
        contents, content = [], 0
        for token in row.tokens[:end]:
            content = content_after(content, token)
            contents.append(content)
        return contents

    def _write(self, steps: list[RowStep]) -> None:
        written: set[tuple[int, int]] = set()
        for step in steps:
            row = self.rows[step.row]
            end = step.start + len(step.token_ids)
            assert step.token_ids == row.tokens[step.start : end], "the plan feeds the wrong tokens"
            self.num_computed += len(step.token_ids)
            contents = self._contents(row, end)
            for position in range(step.start, end):
                slot = self._slot(row, position)
                assert slot not in written, "two rows write one slot"
                written.add(slot)
                self.slots[slot] = contents[position]

    def _read(self, steps: list[RowStep]) -> SampledTokens:
        drawn = []
        for step in steps:
            row = self.rows[step.row]
            end = step.start + len(step.token_ids)
            contents = self._contents(row, end)
            found = [self.slots.get(self._slot(row, position)) for position in range(end)]
            assert found == contents, "a row reads KV that is not its own prefix's"
            if step.sample:
                assert end == len(row.tokens), "a row samples before its last token"
                drawn.append(token_after(contents[-1], row.seed, end))
                row.tokens.append(drawn[-1])
        return SampledTokens(drawn)


class Driver:
    """A scheduler and a memory runner, stepped together, with integrity checked around every step.

    With `depth` 2 a plan is made and launched before the one before it has been completed, as the overlapped loop does.
    Its clock stands still but for `step_s` after each step.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        facts: RunnerFacts,
        hasher: BlockHasher,
        depth: int,
        order: AdmissionOrder | None,
    ) -> None:
        self.scheduler = Scheduler(config, facts, hasher, order)
        self.now_s = 0.0
        self.step_s = 0.0
        self.runner = MemoryRunner(facts)
        self.plans: list[StepPlan] = []
        self.events: list[KvEvent] = []
        self.outputs: list[SequenceOutput] = []
        self.rows = TokenRows()
        self.depth = depth
        self.in_flight: deque[SampledTokens] = deque()
        self.num_added = 0

    def add(self, tokens: Iterable[int], name: str = "", **wishes: Any) -> str:
        """Queue a request; what `Request` does not know goes to its sampling."""
        self.num_added += 1
        name = name or f"request-{self.num_added}"
        own = {
            key: wishes.pop(key)
            for key in (
                "isolation",
                "generated",
                "finished",
                "priority",
                "digests",
                "tenant",
                "weight",
                "waited_s",
            )
            if key in wishes
        }
        sampling = SamplingParams(**{"seed": 7, "max_tokens": 4, **wishes})
        self.scheduler.add(Request(name, pack_tokens(tokens), sampling, **own), self.now_s)
        return name

    def step(self) -> StepPlan | None:
        plan = self.scheduler.schedule(self.now_s)
        self.now_s += self.step_s
        self.scheduler.check_integrity()
        if plan is not None:
            self.plans.append(plan)
            self.in_flight.append(self.runner.launch(plan))
        if self.in_flight and (plan is None or len(self.in_flight) == self.depth):
            self.complete(self.in_flight.popleft())
            self.scheduler.check_integrity()
        self.events += self.scheduler.take_events()
        return plan

    def complete(self, sampled: SampledTokens) -> None:
        step = self.scheduler.complete(sampled)
        self.outputs += self.rows.expand(step.outputs, step.rows, step.tokens)

    def run(self, limit: int = 1000) -> None:
        """Until nothing is left to do."""
        for _ in range(limit):
            self.step()
            if not self.in_flight and not self.scheduler.has_work():
                return
        raise AssertionError(f"not done after {limit} steps")

    def tokens_of(self, name: str, index: int = 0) -> list[int]:
        found = defaultdict(list)
        for output in self.outputs:
            found[output.request_id, output.index] += output.token_ids
        return found[name, index]

    def last_of(self, name: str, index: int = 0) -> SequenceOutput:
        return [each for each in self.outputs if (each.request_id, each.index) == (name, index)][-1]


@pytest.fixture
def make_driver() -> Callable[..., Driver]:
    def make(
        num_blocks: int = 64,
        block_size: int = 16,
        max_model_len: int = 512,
        eos: tuple[int, ...] = (),
        hasher: BlockHasher | None = None,
        depth: int = 1,
        order: AdmissionOrder | None = None,
        **config: Any,
    ) -> Driver:
        facts = RunnerFacts(num_blocks, block_size, max_model_len, VOCABULARY, eos)
        hasher = hasher or BlockHasher(SECRET, block_size)
        return Driver(SchedulerConfig(**config), facts, hasher, depth, order)

    return make


@pytest.fixture
def expected_tokens() -> Callable[..., list[int]]:
    """What the fake model generates after a prompt, computed with no scheduler at all."""

    def expected(prompt: Iterable[int], count: int, seed: int = 7) -> list[int]:
        content, position, drawn = 0, 0, []
        for token in prompt:
            content, position = content_after(content, token), position + 1
        for _ in range(count):
            drawn.append(token_after(content, seed, position))
            content, position = content_after(content, drawn[-1]), position + 1
        return drawn

    return expected


@dataclass(frozen=True, slots=True)
class CollidingHasher(BlockHasher):
    """Every digest depends on the block's first token alone, so that collisions are easy to make."""

    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        stride = self.block_size * 4
        for end in range((len(digests) + 1) * stride, len(tokens) + 1, stride):
            block = bytes(tokens[end - stride : end])
            digests.append(self.next_digest(None, block))

    def next_digest(self, parent: bytes | None, tokens: bytes, extra: bytes = b"") -> bytes:
        return tokens[:4] * 4


@pytest.fixture
def colliding_hasher() -> BlockHasher:
    """For blocks of four tokens."""
    return CollidingHasher(SECRET, 4)


class Prompts:
    """Block tables without a scheduler: fill one, free it, look it up."""

    def __init__(self, kv: KvCache) -> None:
        self.kv = kv
        self.open: list[BlockTable] = []

    def match(self, tokens: Iterable[int], extra: bytes = b"") -> int:
        """Cached tokens."""
        ids = array("i", tokens)
        return len(self.kv.lookup(self.kv.table(ids, [], extra), ids)) * self.kv.block_size

    def take(self, tokens: Iterable[int], extra: bytes = b"") -> BlockTable | None:
        """A table with the tokens' KV computed; None when the pool has no room."""
        ids = array("i", tokens)
        table = self.kv.table(ids, [], extra)
        if not self.kv.admit(table, ids, self.kv.lookup(table, ids)):
            return None
        self.kv.fill(table, ids, len(ids))
        self.open.append(table)
        self.check()
        return table

    def free(self, table: BlockTable) -> None:
        self.open.remove(table)
        self.kv.release(table)
        self.check()

    def run(self, tokens: Iterable[int], extra: bytes = b"") -> None:
        """Compute, then free."""
        table = self.take(tokens, extra)
        assert table is not None, "the pool is too small for this test"
        self.free(table)

    def check(self) -> None:
        self.kv.check_integrity(self.open)


@pytest.fixture
def make_prompts() -> Callable[..., Prompts]:
    def make(
        num_blocks: int = 32, block_size: int = 16, enabled: bool = True, hasher: BlockHasher | None = None
    ) -> Prompts:
        return Prompts(KvCache(num_blocks, hasher or BlockHasher(SECRET, block_size), enabled))

    return make
