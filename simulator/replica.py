"""One simulated replica: a line in the product's admission order, one prefill at a time, and decodes by rate.

Driven by `simulation.py`, which asks when something happens next and calls `handle` then. Decodes are fluid: all
running sequences advance at one rate, so a counter of steps taken says when each ends.
"""

from __future__ import annotations

import heapq

from protocol.messages import Load
from protocol.speeds import PrefillRate, Speeds
from simulator.block_cache import BlockCache
from simulator.sequence import SimulatedSequence
from simulator.service_model import ServiceModel
from simulator.simulated_replica import NEVER, Happened
from simulator.trace import BLOCK_TOKENS
from workers.scheduling.admission import Moment
from workers.scheduling.live_request import standing
from workers.scheduling.scheduler_config import SchedulerConfig
from workers.scheduling.sequence import Sequence
from workers.scheduling.waiting_line import WaitingLine
from workers.speed_meter import MIN_PREFILL_TOKENS, PrefillFit

MOST_BEGUN = SchedulerConfig().max_begun_prefills
_SLACK = 1e-9  # of sums of floats that should be equal


class Replica:
    """`slice_s`: how long a prefill runs before the choice is made anew; infinite: to its end."""

    __slots__ = (
        "_begun",
        "_current",
        "_decoding",
        "_fit",
        "_order",
        "_rate",
        "_since_s",
        "_slice_end_s",
        "_slice_s",
        "_slice_since_s",
        "_slice_work_s",
        "_step_s",
        "_steps",
        "backlog_tokens",
        "busy_s",
        "cache",
        "model",
    )

    def __init__(self, model: ServiceModel, cache: BlockCache, order: WaitingLine, slice_s: float) -> None:
        self.cache = cache
        self.busy_s = 0.0  # with prefills
        self.backlog_tokens = 0  # still to be prefilled, as far as known not cached
        self.model = model
        self._order = order
        self._slice_s = slice_s
        self._fit = PrefillFit()
        self._rate = PrefillRate()
        self._begun: list[SimulatedSequence] = []
        self._current: SimulatedSequence | None = None  # whose prefill is running
        self._slice_work_s = 0.0  # of its prefill, on an otherwise idle replica
        self._slice_since_s = 0.0
        self._slice_end_s = NEVER
        self._decoding: list[
            tuple[float, int, SimulatedSequence]
        ] = []  # a heap by the step of the last token
        self._steps = 0.0  # decode steps taken so far
        self._since_s = 0.0  # when they were counted last
        self._step_s = model.step_s(0, prefilling=False)

    @property
    def num_decoding(self) -> int:
        return len(self._decoding)

    @property
    def num_waiting(self) -> int:
        return len(self._order)

    @property
    def load(self) -> Load:
        """In blocks of the trace. Speeds of prefill are learnt as the engine does, those of decodes are known."""
        model, cache, num_begun = self.model, self.cache, len(self._begun)
        return Load(
            num_running=num_begun + len(self._decoding),
            num_waiting=len(self._order) - num_begun,
            num_blocks=cache.capacity,
            num_used_blocks=cache.num_pinned,
            num_cached_blocks=len(cache) - cache.num_pinned,
            waiting_prefill_tokens=self.backlog_tokens,
            speeds=Speeds(
                model.prefill_s,
                self._fit.s_per_token,
                self._fit.s_per_pair,
                model.decode_step_s,
                model.decode_sequence_s,
            ),
            prefill_utilization=self._rate.at(self._since_s),
        )

    @property
    def next_event_s(self) -> float:
        if not self._decoding:
            return self._slice_end_s
        decoded_s = self._since_s + (self._decoding[0][0] - self._steps) * self._step_s
        return min(self._slice_end_s, decoded_s)

    def slow_down(self, factor: float) -> None:
        self.model = self.model.slower(factor)
        for sequence in self._begun:
            sequence.remaining_s *= factor

    def add(self, sequence: SimulatedSequence, now_s: float) -> Load:
        self._advance(now_s)
        self._order.add(sequence)
        self._num_uncached(sequence)
        self._turn(now_s)
        return self.load

    def handle(self, now_s: float) -> Happened:
        """`now_s` is the time that `next_event_s` said."""
        self._advance(now_s)
        ended = []
        while self._decoding and self._decoding[0][0] <= self._steps + _SLACK:
            ended.append(heapq.heappop(self._decoding)[2])
        prefilled = self._end_slice(now_s) if self._slice_end_s <= now_s else None
        if prefilled is not None and prefilled.request.num_output_tokens == 1:
            ended.append(prefilled)
        for sequence in ended:
            self.cache.release(sequence.blocks)
            sequence.note_output()
            self._order.charge(sequence)
        self._turn(now_s)
        return Happened(() if prefilled is None else (prefilled,), ended)

    def _advance(self, now_s: float) -> None:
        self._steps += (now_s - self._since_s) / self._step_s
        self._since_s = now_s

    def _turn(self, now_s: float) -> None:
        """Something has changed: if no prefill runs, let the best one run, and set the pace of the decodes anew."""
        if self._current is None and len(self._order):
            chosen = self._best(now_s)
            if chosen is not None:
                self._run(chosen, now_s)
        self._step_s = self.model.step_s(len(self._decoding), self._current is not None)

    def _best(self, now_s: float) -> SimulatedSequence | None:
        full = len(self._begun) + len(self._decoding) >= self.model.max_running
        moment = Moment(now_s, self.model.token_s, self._num_uncached, self.model.token_pair_s)
        for sequence in self._order.ranked(moment):
            assert isinstance(sequence, SimulatedSequence), "a simulated line holds simulated sequences"
            full = full or (sequence.row is None and self._crowded(sequence))
            if sequence.row is not None or not full:
                return sequence
        return None

    def _crowded(self, sequence: SimulatedSequence) -> bool:
        """As many are begun as may be of its class and tenant's level and better ones: so for all behind it too."""
        rank = standing(sequence.live)
        return sum(standing(begun.live) <= rank for begun in self._begun) >= MOST_BEGUN

    def _num_uncached(self, sequence: Sequence) -> int:
        assert isinstance(sequence, SimulatedSequence), "a simulated line holds simulated sequences"
        num_tokens = sequence.request.num_tokens
        if sequence.row is not None:
            return sequence.backlog_tokens
        sequence.num_matched = self.cache.reach(sequence.blocks, sequence.num_matched)
        num_uncached = max(1, num_tokens - sequence.num_matched * BLOCK_TOKENS)
        self._set_backlog(sequence, num_uncached)
        return num_uncached

    def _prefilled_to(self, sequence: SimulatedSequence, num_left: int, now_s: float) -> None:
        self._measure(sequence, num_left, now_s)
        self._order.charge(sequence, sequence.backlog_tokens - num_left)
        self._set_backlog(sequence, num_left)

    def _set_backlog(self, sequence: SimulatedSequence, num_tokens: int) -> None:
        self.backlog_tokens += num_tokens - sequence.backlog_tokens
        sequence.backlog_tokens = num_tokens

    def _run(self, sequence: SimulatedSequence, now_s: float) -> None:
        if sequence.row is None:
            self._begin(sequence)
        self._current = sequence
        self._slice_work_s = min(sequence.remaining_s, self._slice_s)
        slice_s = self._slice_work_s * self.model.slowed(len(self._decoding))
        self._slice_since_s, self._slice_end_s = now_s, now_s + slice_s
        sequence.prefill_s += slice_s
        self.busy_s += slice_s

    def _begin(self, sequence: SimulatedSequence) -> None:
        num_uncached = self._num_uncached(sequence)
        sequence.cached_tokens = sequence.request.num_tokens - num_uncached
        self.cache.pin(sequence.blocks[: sequence.num_matched])
        sequence.remaining_s = self.model.prefill_time_s(sequence.cached_tokens, num_uncached)
        sequence.row = 0
        self._begun.append(sequence)

    def _measure(self, sequence: SimulatedSequence, num_left: int, now_s: float) -> None:
        """A slice has left so many tokens. Its seconds are those that it took, slowed by decodes."""
        num_done, slice_s = sequence.backlog_tokens - num_left, now_s - self._slice_since_s
        self._rate.add(slice_s, now_s)
        if num_done >= MIN_PREFILL_TOKENS:
            before = sequence.request.num_tokens - sequence.backlog_tokens
            self._fit.observe(num_done, num_done * (before + num_done / 2), slice_s)

    def _end_slice(self, now_s: float) -> SimulatedSequence | None:
        """The sequence whose prefill this ended, if it did."""
        sequence = self._current
        assert sequence is not None, "a slice ends of a prefill that runs"
        self._current, self._slice_end_s = None, NEVER
        sequence.remaining_s -= self._slice_work_s
        if sequence.remaining_s > _SLACK:
            num_left = self.model.tokens_left(sequence.request.num_tokens, sequence.remaining_s)
            self._prefilled_to(sequence, num_left, now_s)
            return None
        self._prefilled_to(sequence, 0, now_s)
        self._order.remove(sequence)
        self._begun.remove(sequence)
        self.cache.insert(sequence.blocks, sequence.num_matched)
        sequence.ttft_s = now_s - sequence.request.arrival_s
        if sequence.request.num_output_tokens > 1:
            last_step = self._steps + sequence.request.num_output_tokens - 1
            heapq.heappush(self._decoding, (last_step, sequence.request.index, sequence))
        return sequence
