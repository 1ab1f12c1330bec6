"""Hands out what is left of a step's budget as chunks of prefill, and admits waiting sequences meanwhile.

Called by `scheduler.py` once a step, after the decodes. Who comes first is the order's matter (`admission.py`), what
is cached already that of `matches.py`, who must leave for a better class that of `displacement.py`.
"""

from __future__ import annotations

import enum

from protocol.tokens import pack_tokens
from workers.kv.kv_cache import KvCache
from workers.kv.prefix_cache import PrefixNode
from workers.scheduling.admission import AdmissionOrder, Moment, aged_class
from workers.scheduling.displacement import Displacement
from workers.scheduling.live_request import standing
from workers.scheduling.load_meter import LoadMeter
from workers.scheduling.matches import Matches
from workers.scheduling.plan_draft import PlanDraft
from workers.scheduling.prompt_holds import PromptHolds
from workers.scheduling.running import Running
from workers.scheduling.scheduler_config import SchedulerConfig
from workers.scheduling.sequence import Sequence
from workers.step_plan import Chunk, RowStart

RESERVED_SHARE = 100  # while others run, one block in so many is left to them at an admission


class Admission(enum.Enum):
    ADMITTED = enum.auto()
    LATER = enum.auto()  # waits for something of its own; others may go first
    CROWDED = enum.auto()  # enough are begun; only those may overtake whose prefill ends in this step
    NO_ROOM = enum.auto()  # no row or no blocks; nobody behind it may overtake


class Prefill:
    """Owns nothing: the scheduler's parts, seen from the side of the sequences that are not decoding yet."""

    __slots__ = (
        "_config",
        "_displacement",
        "_holds",
        "_kv",
        "_meter",
        "_now_s",
        "_running",
        "matches",
        "order",
    )

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
        self._displacement = Displacement(kv, running, holds)
        self._now_s = 0.0  # when a step was planned last
        self.matches = Matches(kv, running, meter)
        self.order = order

    def queue(self, sequence: Sequence) -> None:
        """New, forked or preempted: all its tokens are to be computed, but those found in the cache."""
        if sequence not in self.order:
            self.order.add(sequence)
            if sequence.started:  # it has decoded since: what it waited for before that is settled
                sequence.waiting_since_s = self._now_s
        self._meter.set_backlog(sequence, len(sequence.tokens))
        self.matches.num_uncached(sequence)

    def to_displace(self, moment: Moment) -> list[Sequence]:
        """Who must be preempted for the best of those waiting, which has no room and goes before somebody who has.

        To be asked before the step's decodes are planned, for their rows and blocks are used again in the same step.
        """
        self._now_s = moment.now_s
        claimant = self._claimant(moment)
        if claimant is None:
            return []
        return self._displacement.victims(claimant, self.matches.shared_blocks(claimant), self._reserve())

    def plan(self, draft: PlanDraft, moment: Moment) -> None:
        """Chunks for begun and newly admitted sequences, in order, while budget is left."""
        self._now_s = moment.now_s
        admitting, crowded = True, False
        budget = self._config.max_num_batched_tokens - len(draft.decode_rows)
        num_begun = len(self._running.begun)
        for sequence in self.order.ranked(moment):
            if budget == 0 or not (admitting or num_begun):
                break
            if sequence.row is not None:
                num_begun -= 1
            elif not admitting or (crowded and sequence.backlog_tokens > budget):
                continue
            else:
                admission = self._admit(sequence, budget, draft)
                admitting = admission is not Admission.NO_ROOM
                crowded = crowded or admission is Admission.CROWDED
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
        draft.chunks.append(Chunk(row, start, pack_tokens(sequence.tokens[start:end]), samples))
        draft.prefilling.append(sequence)
        new_blocks = sequence.table.take_new_blocks()
        if new_blocks:
            draft.grown.append((row, new_blocks))
        sequence.num_computed = end
        self._kv.fill(sequence.table, sequence.tokens, end)
        self._meter.set_backlog(sequence, len(sequence.tokens) - end)
        self.order.charge(sequence, end - start)
        if last:
            self._running.end_prefill(sequence)
            draft.prefilled.append(sequence)
        if samples:
            draft.drawing.append(sequence)
        return end - start

    def _admit(self, sequence: Sequence, budget: int, draft: PlanDraft) -> Admission:
        matches = self.matches
        if self._running.rows.num_free == 0:
            return Admission.NO_ROOM
        num_uncached = matches.num_uncached(sequence)
        if num_uncached > budget and self._too_many_begun(sequence):
            return Admission.CROWDED
        if len(self._running) and self._surely_too_large(sequence, num_uncached):
            return Admission.NO_ROOM
        matched = [] if matches.forks(sequence) else matches.lookup(sequence)
        if matches.waits(sequence, len(matched), self._tokens_a_step()):
            return Admission.LATER
        if not self._take_blocks(sequence, matched, draft):
            if len(self._running) or not self._holds.close_all():
                return Admission.NO_ROOM
            if not self._take_blocks(sequence, matches.lookup(sequence), draft):
                return Admission.NO_ROOM
        self._start(sequence, draft)
        return Admission.ADMITTED

    def _claimant(self, moment: Moment) -> Sequence | None:
        """The best of those waiting, if room is all that it lacks and somebody whom it may displace has some."""
        if len(self.order) == len(self._running.begun):
            return None
        budget = self._tokens_a_step()
        for sequence in self.order.ranked(moment):
            if sequence.row is not None:
                budget -= sequence.num_remaining
                if budget <= 0:
                    return None
            elif not self._displacement.is_open_to(sequence, self.order.highest_level):
                return None
            elif not self.matches.would_wait(sequence):
                crowded = sequence.backlog_tokens > budget and self._too_many_begun(sequence)
                return None if crowded else sequence
        return None

    def _too_many_begun(self, sequence: Sequence) -> bool:
        """Of its class and level and better ones; so there are too many for all behind it too."""
        rank = standing(sequence.live)
        ahead = sum(standing(begun.live) <= rank for begun in self._running.begun)
        return ahead >= self._config.max_begun_prefills

    def _surely_too_large(self, sequence: Sequence, num_uncached: int) -> bool:
        """Without a lookup, which for a long prompt is work, and would be repeated each step while it waits."""
        size = self._kv.block_size
        num_shared = (len(sequence.tokens) - num_uncached) // size
        num_fresh = self._kv.num_blocks_for(len(sequence.tokens)) - num_shared
        return num_fresh + self._reserve() > self._kv.pool.num_free

    def _tokens_a_step(self) -> int:
        """What is left to prefill when all that decode now go on."""
        return self._config.max_num_batched_tokens - len(self._running.decoding)

    def _reserve(self) -> int:
        return self._kv.pool.num_usable // RESERVED_SHARE if len(self._running) else 0

    def _take_blocks(self, sequence: Sequence, matched: list[PrefixNode], draft: PlanDraft) -> bool:
        """Fill its table, all or nothing, and count what was found."""
        table, tokens, live = sequence.table, sequence.tokens, sequence.live
        if self.matches.forks(sequence):
            assert live.hold is not None, "a fork needs the prompt's blocks"
            num_shared = sequence.lengths.prompt - 1
            copies = self._kv.fork(table, tokens, live.hold, num_shared, self._reserve())
            if copies is None:
                return False
            draft.copies += copies
            sequence.num_computed = num_shared
            return True
        if not self._kv.admit(table, tokens, matched, self._reserve()):
            return False
        sequence.num_computed = len(matched) * self._kv.block_size
        if not sequence.started and sequence.index == live.leader:
            live.num_cached_tokens = min(sequence.num_computed, sequence.lengths.prompt)
        bypassed = self.matches.bypasses(sequence)
        self._kv.count(table, len(tokens), len(matched), sequence.started, bypassed)
        return True

    def _start(self, sequence: Sequence, draft: PlanDraft) -> None:
        request = sequence.live.request
        generated = pack_tokens(sequence.tokens[sequence.lengths.prompt :])
        sequence.admitted_class = aged_class(sequence, self._now_s, self._config.priority_ageing_s)
        row = self._running.start(sequence)
        draft.starts.append(
            RowStart(row, request.prompt, generated, request.sampling, sequence.seed, request.adapter)
        )
        self._holds.close_if_unneeded(sequence.live)
