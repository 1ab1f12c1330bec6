"""The sequences that have a row, and with it blocks. Owned by `scheduler.py`, which decides who they are."""

from __future__ import annotations

from workers.kv.kv_cache import KvCache
from workers.scheduling.live_request import standing
from workers.scheduling.load_meter import LoadMeter
from workers.scheduling.rows import Rows
from workers.scheduling.sequence import Sequence


class Running:
    """`begun` have prefill left to do, `decoding` have not: they feed one token a step."""

    __slots__ = ("_kv", "_meter", "_num_admissions", "begun", "decoding", "rows")

    def __init__(self, kv: KvCache, meter: LoadMeter, num_rows: int) -> None:
        self._kv = kv
        self._meter = meter
        self._num_admissions = 0
        self.rows = Rows(num_rows)
        self.begun: list[Sequence] = []
        self.decoding: list[Sequence] = []

    def __len__(self) -> int:
        return len(self.begun) + len(self.decoding)

    def start(self, sequence: Sequence) -> int:
        """Its table has been admitted. Answers with its row."""
        assert sequence.row is None, "a sequence starts once"
        row = sequence.row = self.rows.take()
        self._num_admissions += 1
        sequence.admission = self._num_admissions
        sequence.started = True
        self.begun.append(sequence)
        self._meter.row_taken(sequence.live)
        return row

    def end_prefill(self, sequence: Sequence) -> None:
        self.begun.remove(sequence)
        self.decoding.append(sequence)

    def stop(self, sequence: Sequence) -> None:
        """Give back row and blocks."""
        row = sequence.row
        assert row is not None, "only a running sequence can stop"
        (self.begun if sequence in self.begun else self.decoding).remove(sequence)
        self._kv.release(sequence.table)
        self.rows.give_back(row)
        self._meter.row_given_back(sequence.live)
        sequence.row = None
        sequence.num_computed = 0
        sequence.announced = False

    def last(self) -> Sequence:
        """Whom preemption takes: the one admitted last, of the lowest class and its tenant that has had most."""
        return max([*self.begun, *self.decoding], key=preemption_rank)

    def check_integrity(self) -> None:
        rows = []
        for sequence in [*self.begun, *self.decoding]:
            assert sequence.row is not None, "a running sequence has no row"
            rows.append(sequence.row)
        self.rows.check_integrity(rows)
        assert all(sequence.num_remaining > 0 for sequence in self.begun), "a begun prefill has ended"


def preemption_rank(sequence: Sequence) -> tuple[tuple[int, int], int]:
    """The highest goes first."""
    return standing(sequence.live), sequence.admission
