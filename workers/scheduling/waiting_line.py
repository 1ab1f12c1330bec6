"""What all orders of admission share: a line sorted by priority class, tenant's level and then the order's own key.

Base of the orders in `admission_orders.py`. Keys change with time and with the cache, so the whole line is sorted anew
once a slice; whoever arrives meanwhile is put where it belongs at once. With a thousand waiting that costs a step a
few microseconds, and a millisecond four times a second.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable

from workers.scheduling.admission import Moment, aged_class
from workers.scheduling.sequence import Sequence
from workers.scheduling.tenants import GENERATED_TOKEN, Tenants

SLICE_S = 0.25  # a long prefill has the budget for so long before the choice is made anew
SLICE_MEMBERS = (
    1000  # a longer line is sorted less often in proportion, so that its share of the time is bounded
)

Place = tuple[int, int, float, int, int, Sequence]  # class, level, key, arrival, index: no two are equal


class WaitingLine(ABC):
    """By class, then level, then key, then arrival.

    A class improves with waiting, up to the best one that waits here: a low class cannot be starved by better ones,
    and where all are of one class nothing changes. A preempted sequence gets its old arrival back. Levels are those
    of `tenants.py`: 0 for all while there is one tenant.
    """

    __slots__ = ("_ageing_s", "_best_class", "_line", "_newcomers", "_places", "_sorted_s", "_tenants")

    def __init__(self, ageing_s: float | None = None) -> None:
        self._ageing_s = ageing_s
        self._line: list[Place] = []
        self._newcomers: list[Sequence] = []  # since it was read last: they have no place yet
        self._places: dict[Sequence, Place | None] = {}
        self._best_class = 0  # of those that were in the line when it was sorted, ageing aside
        self._sorted_s = float("-inf")
        self._tenants = Tenants()

    @abstractmethod
    def key(self, sequence: Sequence, moment: Moment) -> float:
        """The lowest first."""

    def add(self, sequence: Sequence) -> None:
        assert sequence not in self._places, "a sequence queues once"
        self._places[sequence] = None
        self._newcomers.append(sequence)
        sequence.live.account = self._tenants.enter(sequence.live.request.tenant)

    def remove(self, sequence: Sequence) -> None:
        assert sequence in self._places, "only a queued sequence can leave"
        self._tenants.leave(sequence.live.account)
        place = self._places.pop(sequence)
        if place is None:
            self._newcomers.remove(sequence)
        else:
            del self._line[bisect_left(self._line, place)]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def highest_level(self) -> int:
        return self._tenants.highest_level

    def charge(self, sequence: Sequence, num_prompt_tokens: int = 0) -> None:
        live, num_tokens = sequence.live, len(sequence.tokens)
        weighted = num_prompt_tokens + GENERATED_TOKEN * (num_tokens - sequence.num_charged)
        sequence.num_charged = num_tokens
        self._tenants.charge(live.request.tenant, live.account, weighted / live.request.weight)

    def ranked(self, moment: Moment) -> Iterable[Sequence]:
        newcomers, self._newcomers = self._newcomers, []
        best = min((_priority(each) for each in newcomers), default=self._best_class)
        slice_s = SLICE_S * max(1.0, len(self._line) / SLICE_MEMBERS)
        if moment.now_s - self._sorted_s >= slice_s or best < self._best_class:
            self._sort(newcomers, moment)
        elif newcomers:
            self._insert(newcomers, moment)
        return (place[-1] for place in self._line)

    def _sort(self, newcomers: list[Sequence], moment: Moment) -> None:
        sequences = [place[-1] for place in self._line] + newcomers  # nearly sorted already
        self._best_class = min(map(_priority, sequences), default=0)
        self._settle(sequences, moment)
        self._line = sorted([self._placed(each, moment) for each in sequences])
        self._sorted_s = moment.now_s

    def _settle(self, sequences: list[Sequence], moment: Moment) -> None:
        if len(self._tenants) > 1:
            for sequence in moment.decoding:
                self.charge(sequence)
        self._tenants.count([(each.live.account, each.backlog_tokens) for each in sequences])
        self._tenants.settle(moment.prefill_s_per_token)

    def _insert(self, newcomers: list[Sequence], moment: Moment) -> None:
        """Begun ones are placed anew too: nobody may overtake them for what they had left a while ago."""
        begun = [place for place in self._line if place[-1].row is not None]
        for place in begun:
            del self._line[bisect_left(self._line, place)]
        for sequence in [*newcomers, *(place[-1] for place in begun)]:
            insort(self._line, self._placed(sequence, moment))

    def _placed(self, sequence: Sequence, moment: Moment) -> Place:
        live, best = sequence.live, self._best_class
        is_best = live.request.priority <= best  # as most are: then age changes nothing
        aged = best if is_best else max(best, aged_class(sequence, moment.now_s, self._ageing_s))
        place = aged, live.account.level, self.key(sequence, moment), live.arrival, sequence.index, sequence
        self._places[sequence] = place
        return place

    def check_integrity(self) -> None:
        assert len(self._line) + len(self._newcomers) == len(self._places), "one has no place, or two"
        self._tenants.check_integrity(Counter(each.live.request.tenant for each in self._places))


def _priority(sequence: Sequence) -> int:
    return sequence.live.request.priority
