"""One simulated replica: a line in the product's admission order, one prefill at a time, and decodes by rate.

Driven by `simulation.py`, which asks when something happens next and calls `handle` then. Decodes are fluid: all
running sequences advance at one rate, so a counter of steps taken says when each ends.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from simulator.block_cache import BlockCache
from simulator.sequence import SimulatedSequence
from simulator.service_model import ServiceModel
from simulator.trace import BLOCK_TOKENS
from workers.scheduling.admission import Moment
from workers.scheduling.scheduler_config import SchedulerConfig
from workers.scheduling.sequence import Sequence
from workers.scheduling.waiting_line import WaitingLine

MOST_BEGUN = SchedulerConfig().max_begun_prefills
NEVER = float("inf")
_SLACK = 1e-9  # of sums of floats that should be equal


@dataclass(frozen=True, slots=True)
class Happened:
    prefilled: SimulatedSequence | None = None
    ended: list[SimulatedSequence] = field(default_factory=list)


class Replica:
    """`slice_s`: how long a prefill runs before the choice is made anew; infinite: to its end."""

    __slots__ = (
        "_begun",
        "_current",
        "_decoding",
        "_model",
        "_order",
        "_since_s",
        "_slice_end_s",
        "_slice_s",
        "_slice_work_s",
        "_step_s",
        "_steps",
        "backlog_tokens",
        "busy_s",
        "cache",
    )

    def __init__(self, model: ServiceModel, cache: BlockCache, order: WaitingLine, slice_s: float) -> None:
        self.cache = cache
        self.busy_s = 0.0  # with prefills
        self.backlog_tokens = 0  # still to be prefilled, as far as known not cached
        self._model = model
        self._order = order
        self._slice_s = slice_s
        self._begun: list[SimulatedSequence] = []
        self._current: SimulatedSequence | None = None  # whose prefill is running
        self._slice_work_s = 0.0  # of its prefill, on an otherwise idle replica
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
    def next_event_s(self) -> float:
        if not self._decoding:
            return self._slice_end_s
        decoded_s = self._since_s + (self._decoding[0][0] - self._steps) * self._step_s
        return min(self._slice_end_s, decoded_s)

    def add(self, sequence: SimulatedSequence, now_s: float) -> None:
        self._advance(now_s)
        self._order.add(sequence)
        self._num_uncached(sequence)
        self._turn(now_s)

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
        self._turn(now_s)
        return Happened(prefilled, ended)

    def _advance(self, now_s: float) -> None:
        self._steps += (now_s - self._since_s) / self._step_s
        self._since_s = now_s

    def _turn(self, now_s: float) -> None:
        """Something has changed: if no prefill runs, let the best one run, and set the pace of the decodes anew."""
        if self._current is None and len(self._order):
            chosen = self._best(now_s)
            if chosen is not None:
                self._run(chosen, now_s)
        self._step_s = self._model.step_s(len(self._decoding), self._current is not None)

    def _best(self, now_s: float) -> SimulatedSequence | None:
        num_begun = len(self._begun)
        full = num_begun >= MOST_BEGUN or num_begun + len(self._decoding) >= self._model.max_running
        moment = Moment(now_s, self._model.token_s, self._num_uncached, self._model.token_pair_s)
        for sequence in self._order.ranked(moment):
            assert isinstance(sequence, SimulatedSequence), "a simulated line holds simulated sequences"
            if sequence.row is not None or not full:
                return sequence
        return None

    def _num_uncached(self, sequence: Sequence) -> int:
        assert isinstance(sequence, SimulatedSequence), "a simulated line holds simulated sequences"
        num_tokens = sequence.request.num_tokens
        if sequence.row is not None:
            return sequence.backlog_tokens
        sequence.num_matched = self.cache.reach(sequence.blocks, sequence.num_matched)
        num_uncached = max(1, num_tokens - sequence.num_matched * BLOCK_TOKENS)
        self._set_backlog(sequence, num_uncached)
        return num_uncached

    def _set_backlog(self, sequence: SimulatedSequence, num_tokens: int) -> None:
        self.backlog_tokens += num_tokens - sequence.backlog_tokens
        sequence.backlog_tokens = num_tokens

    def _run(self, sequence: SimulatedSequence, now_s: float) -> None:
        if sequence.row is None:
            self._begin(sequence)
        self._current = sequence
        self._slice_work_s = min(sequence.remaining_s, self._slice_s)
        slice_s = self._slice_work_s * self._model.slowed(len(self._decoding))
        self._slice_end_s = now_s + slice_s
        sequence.prefill_s += slice_s
        self.busy_s += slice_s

    def _begin(self, sequence: SimulatedSequence) -> None:
        num_uncached = self._num_uncached(sequence)
        sequence.cached_tokens = sequence.request.num_tokens - num_uncached
        self.cache.pin(sequence.blocks[: sequence.num_matched])
        sequence.remaining_s = self._model.prefill_time_s(sequence.cached_tokens, num_uncached)
        sequence.row = 0
        self._begun.append(sequence)

    def _end_slice(self, now_s: float) -> SimulatedSequence | None:
        """The sequence whose prefill this ended, if it did."""
        sequence = self._current
        assert sequence is not None, "a slice ends of a prefill that runs"
        self._current, self._slice_end_s = None, NEVER
        sequence.remaining_s -= self._slice_work_s
        if sequence.remaining_s > _SLACK:
            num_left = self._model.tokens_left(sequence.request.num_tokens, sequence.remaining_s)
            self._set_backlog(sequence, num_left)
            return None
        self._set_backlog(sequence, 0)
        self._order.remove(sequence)
        self._begun.remove(sequence)
        self.cache.insert(sequence.blocks, sequence.num_matched)
        sequence.ttft_s = now_s - sequence.request.arrival_s
        if sequence.request.num_output_tokens > 1:
            last_step = self._steps + sequence.request.num_output_tokens - 1
            heapq.heappush(self._decoding, (last_step, sequence.request.index, sequence))
        return sequence
