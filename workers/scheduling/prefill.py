"""Hands out what is left of a step's budget as chunks of prefill, and admits waiting sequences meanwhile.

Called by `scheduler.py` once a step, after the decodes. The order of the candidates is `admission.py`'s.
"""

from __future__ import annotations

import enum

from protocol.tokens import pack_tokens
from workers.kv.kv_cache import KvCache
from workers.kv.prefix_cache import PrefixNode
from workers.scheduling.admission import AdmissionOrder
from workers.scheduling.load_meter import LoadMeter
from workers.scheduling.plan_draft import PlanDraft
from workers.scheduling.prompt_holds import PromptHolds
from workers.scheduling.running import Running
from workers.scheduling.scheduler_config import SchedulerConfig
from workers.scheduling.sequence import Sequence
from workers.step_plan import RowStart, RowStep

RESERVED_SHARE = 100  # while others run, one block in so many is left to them at an admission


class Admission(enum.Enum):
    ADMITTED = enum.auto()
    LATER = enum.auto()  # waits for something of its own; others may go first
    NO_ROOM = enum.auto()  # no row, no blocks, or enough begun; nobody behind it may overtake


class Prefill:
    """Owns nothing: the scheduler's parts, seen from the side of the sequences that are not decoding yet."""

    __slots__ = ("_config", "_holds", "_kv", "_meter", "_running", "order")

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KvCache,
        running: Running,
        order: AdmissionOrder,
        holds: PromptHolds,
        meter: LoadMeter,
    ) -> None:
        self._config = config
        self._kv = kv
        self._running = running
        self._holds = holds
        self._meter = meter
        self.order = order

    def queue(self, sequence: Sequence) -> None:
        """New, forked or preempted: all its tokens are to be computed, but those found in the cache."""
        if sequence not in self.order:
            self.order.add(sequence)
        if self._forks(sequence):
            num_cached = sequence.lengths.prompt - 1
        else:
            num_cached = len(self._lookup(sequence)) * self._kv.block_size
        self._meter.set_backlog(sequence, len(sequence.tokens) - num_cached)

    def plan(self, draft: PlanDraft) -> None:
        """Chunks for begun and newly admitted sequences, in order, while budget is left."""
        admitting = True
        budget = self._config.max_num_batched_tokens - len(draft.rows)
        num_begun = len(self._running.begun)
        for sequence in self.order:
            if budget == 0 or not (admitting or num_begun):
                break
            if sequence.row is not None:
                num_begun -= 1
            else:
                admission = self._admit(sequence, draft) if admitting else Admission.NO_ROOM
                admitting = admission is not Admission.NO_ROOM
                if admission is not Admission.ADMITTED:
                    continue
            budget -= self._add_chunk(sequence, budget, draft)
        for sequence in draft.prefilled:
            self.order.remove(sequence)

    def _add_chunk(self, sequence: Sequence, budget: int, draft: PlanDraft) -> int:
        row, start = sequence.row, sequence.num_computed
        assert row is not None, "only an admitted sequence prefills"
        end = min(start + budget, len(sequence.tokens))
        last = end == len(sequence.tokens)
        samples = last and sequence.samples
        token_ids = tuple(sequence.tokens[start:end])
        draft.rows.append(RowStep(row, start, token_ids, sequence.table.take_new_blocks(), samples))
        sequence.num_computed = end
        self._kv.fill(sequence.table, sequence.tokens, end)
        self._meter.set_backlog(sequence, len(sequence.tokens) - end)
        if last:
            self._running.end_prefill(sequence)
            draft.prefilled.append(sequence)
        if samples:
            draft.sampled.append(sequence)
        return end - start

    def _admit(self, sequence: Sequence, draft: PlanDraft) -> Admission:
        if self._running.rows.num_free == 0 or self._too_many_begun(sequence):
            return Admission.NO_ROOM
        matched = [] if self._forks(sequence) else self._lookup(sequence)
        if not self._forks(sequence) and self._waits(sequence, len(matched)):
            return Admission.LATER
        if not self._take_blocks(sequence, matched, draft):
            if len(self._running) or not self._holds.close_all():
                return Admission.NO_ROOM
            if not self._take_blocks(sequence, self._lookup(sequence), draft):
                return Admission.NO_ROOM
        self._start(sequence, draft)
        return Admission.ADMITTED

    def _too_many_begun(self, sequence: Sequence) -> bool:
        """Of its class and better ones; so there are too many for all behind it too."""
        priority = sequence.live.request.priority
        ahead = sum(begun.live.request.priority <= priority for begun in self._running.begun)
        return ahead >= self._config.max_begun_prefills

    def _take_blocks(self, sequence: Sequence, matched: list[PrefixNode], draft: PlanDraft) -> bool:
        """Fill its table, all or nothing, and count what was found."""
        pool, table, tokens = self._kv.pool, sequence.table, sequence.tokens
        reserve = pool.num_usable // RESERVED_SHARE if len(self._running) else 0
        live = sequence.live
        if self._forks(sequence):
            assert live.hold is not None, "a fork needs the prompt's blocks"
            num_shared = sequence.lengths.prompt - 1
            copies = self._kv.fork(table, tokens, live.hold, num_shared, reserve)
            if copies is None:
                return False
            draft.copies += copies
            sequence.num_computed = num_shared
            return True
        if not self._kv.admit(table, tokens, matched, reserve):
            return False
        sequence.num_computed = len(matched) * self._kv.block_size
        if not sequence.started and sequence.index == live.leader:
            live.num_cached_tokens = min(sequence.num_computed, sequence.lengths.prompt)
        self._kv.count(table, len(tokens), len(matched), sequence.started, self._bypasses(sequence))
        return True

    def _start(self, sequence: Sequence, draft: PlanDraft) -> None:
        request = sequence.live.request
        generated = pack_tokens(sequence.tokens[sequence.lengths.prompt :])
        row = self._running.start(sequence)
        draft.starts.append(
            RowStart(row, request.prompt, generated, request.sampling, sequence.seed, request.adapter)
        )
        self._holds.close_if_unneeded(sequence.live)

    def _waits(self, sequence: Sequence, num_matched: int) -> bool:
        """Whether somebody is about to compute the next block that it misses, and it can still expect that.

        It waits once in its life, for as many steps as the other's prefill should take.
        """
        other = None if self._bypasses(sequence) else self._provider(sequence, num_matched)
        if other is None:
            return False
        if sequence.patience_steps is None:
            a_step = max(1, self._config.max_num_batched_tokens - len(self._running.decoding))
            sequence.patience_steps = -(-other.num_remaining // a_step) + 1
        sequence.patience_steps -= 1
        return sequence.patience_steps >= 0

    def _provider(self, sequence: Sequence, num_matched: int) -> Sequence | None:
        digests, limit = sequence.table.digests, (len(sequence.tokens) - 1) // self._kv.block_size
        if not self._kv.enabled or num_matched >= limit:
            return None
        wanted = digests[num_matched]
        for other in self._running.begun:
            table = other.table
            ahead = table.chained and table.num_registered <= num_matched < len(table.digests)
            if ahead and table.digests[num_matched] == wanted:
                return other
        return None

    def _lookup(self, sequence: Sequence) -> list[PrefixNode]:
        return [] if self._bypasses(sequence) else self._kv.lookup(sequence.table, sequence.tokens)

    def _forks(self, sequence: Sequence) -> bool:
        return sequence.live.hold is not None and not sequence.started

    def _bypasses(self, sequence: Sequence) -> bool:
        """Prompt logprobs need every position computed."""
        return sequence.live.request.sampling.prompt_logprobs is not None
