"""What is recorded of replicas that scale by themselves, and what can be said of it. Pure; used by `autoscaling.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

WINDOW_S = 15.0  # before a change, and after it


@dataclass(frozen=True)
class Phase:
    """Of the load: so many requests a second, from the one to the other evenly."""

    name: str
    seconds: float
    rate: float
    last_rate: float

    def rate_at(self, at_s: float) -> float:
        """So many seconds after its beginning."""
        share = min(1.0, at_s / self.seconds) if self.seconds else 0.0
        return self.rate + (self.last_rate - self.rate) * share


@dataclass(frozen=True)
class Moment:
    """Loads and needs in replicas fully used, the rest in replicas."""

    at_s: float
    phase: str
    offered: float
    need: float  # as the controller counts it
    wanted: int
    ready: int
    held: int  # from the start of their processes to the end


@dataclass(frozen=True)
class Answer:
    arrival_s: float
    phase: str
    ttft_s: float | None  # None: the request was lost


@dataclass(frozen=True)
class Change:
    at_s: float
    before: int
    after: int

    @property
    def is_up(self) -> bool:
        return self.after > self.before


def changes(trace: Sequence[Moment]) -> list[Change]:
    """Of the number of replicas that are wanted."""
    pairs = ((one, next_one) for one, next_one in pairwise(trace) if one.wanted != next_one.wanted)
    return [Change(next_one.at_s, one.wanted, next_one.wanted) for one, next_one in pairs]


def flaps(made: Sequence[Change], within_s: float) -> list[Change]:
    """Those that undo the one before, sooner than that. A start from none is none: some request asks for it."""
    pairs = ((one, later) for one, later in pairwise(made) if later.before and one.is_up != later.is_up)
    return [later for one, later in pairs if later.at_s - one.at_s < within_s]


def replica_seconds(trace: Sequence[Moment]) -> float:
    return sum(one.held * (later.at_s - one.at_s) for one, later in pairwise(trace))


def times_ms(answers: Sequence[Answer]) -> str:
    """p50 and p99 of the times to the first token."""
    times = sorted(each.ttft_s for each in answers if each.ttft_s is not None)
    if not times:
        return "-"
    return " / ".join(f"{1e3 * quantile(times, share):.0f}" for share in (0.5, 0.99))


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def phase_rows(
    trace: Sequence[Moment], scaled: Sequence[Answer], fixed: Sequence[Answer]
) -> Iterator[tuple[str, ...]]:
    for phase in dict.fromkeys(moment.phase for moment in trace):
        moments = [moment for moment in trace if moment.phase == phase]
        own, other = ([each for each in all_ if each.phase == phase] for all_ in (scaled, fixed))
        offered = sum(moment.offered for moment in moments) / len(moments)
        ready = [moment.ready for moment in moments]
        lost = sum(each.ttft_s is None for each in own)
        span = f"{moments[0].at_s:.0f} to {moments[-1].at_s:.0f}"
        replicas = f"{ready[0]} → {ready[-1]}" if ready[0] != ready[-1] else f"{ready[0]}"
        made = str(sum(one.wanted != later.wanted for one, later in pairwise(moments)))
        counts = (str(len(own)), str(lost), f"{offered:.2f}", replicas, made)
        yield (phase, span, *counts, times_ms(own), times_ms(other))


def change_rows(trace: Sequence[Moment], answers: Sequence[Answer]) -> Iterator[tuple[str, ...]]:
    """TTFT in the window before each change, until as many replicas are ready, and in the window after that."""
    for change in changes(trace):
        later = [moment for moment in trace if moment.at_s >= change.at_s]
        done = (moment for moment in later if moment.ready == moment.held == change.after)
        there_s = next(done, later[-1]).at_s
        spans = (
            (change.at_s - WINDOW_S, change.at_s),
            (change.at_s, there_s),
            (there_s, there_s + WINDOW_S),
        )
        times = (
            times_ms([each for each in answers if begin_s <= each.arrival_s < end_s])
            for begin_s, end_s in spans
        )
        need = next(moment.need for moment in reversed(trace) if moment.at_s <= change.at_s)
        what = f"{change.before} → {change.after}"
        yield (f"{change.at_s:.0f}", what, f"{need:.2f}", f"{there_s - change.at_s:.0f}", *times)
