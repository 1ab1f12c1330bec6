"""Figures beside their floors: rows that `gpu.py` writes as they come, so that a run cut short leaves what it had."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
_HEAD = "| | measured | spread | floor | ratio | asked | |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True, slots=True)
class Row:
    """`floor`: what the ceilings that this run has measured would allow; `target`: the share of it to reach."""

    name: str
    unit: str = ""
    measured: float | None = None
    spread: float = 0.0  # of the repetitions, relative
    floor: float | None = None
    target: float | None = None
    most: float | None = None
    least: float | None = None
    failed: str = ""  # why nothing was measured

    @property
    def ratio(self) -> float | None:
        """Of the floor, 1 where it is reached."""
        if self.floor is None or not self.measured:
            return None
        return self.measured / self.floor if self.unit.endswith("/s") else self.floor / self.measured

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "FAILED"
        bounds = (
            (self.target, self.ratio is not None and self.target is not None and self.ratio >= self.target),
            (self.most, self.most is not None and self.measured <= self.most),
            (self.least, self.least is not None and self.measured >= self.least),
        )
        kept = [holds for bound, holds in bounds if bound is not None]
        return ("PASS" if all(kept) else "MISS") if kept else ""

    @property
    def asked(self) -> str:
        parts = (
            "" if self.target is None else f"{100 * self.target:.0f} %",
            "" if self.most is None else f"at most {self.most:g} {self.unit}",
            "" if self.least is None else f"at least {self.least:g} {self.unit}",
        )
        return ", ".join(filter(None, parts))

    def line(self) -> str:
        measured = self.failed if self.measured is None else f"{self.measured:.3f} {self.unit}"
        spread = "" if self.measured is None else f"{100 * self.spread:.0f} %"
        floor = "" if self.floor is None else f"{self.floor:.3f}"
        ratio = "" if self.ratio is None else f"{100 * self.ratio:.0f} %"
        return f"| {self.name} | {measured} | {spread} | {floor} | {ratio} | {self.asked} | {self.verdict} |"


@dataclass
class Report:
    """`path`: JSON, with the table as markdown beside it. Rows of an earlier call about the same are kept there."""

    path: Path | None
    about: dict[str, object]
    seconds: float  # for everything; what would begin later is left out
    rows: dict[str, Row] = field(default_factory=dict)
    _begun_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            before = json.loads(self.path.read_text("utf-8"))
            if before["about"] == self.about:
                known = Row.__dataclass_fields__
                rows = ({name: each[name] for name in known} for each in before["rows"])
                self.rows = {each["name"]: Row(**each) for each in rows}

    def add(self, row: Row) -> None:
        self.rows[row.name] = row
        print(row.line(), flush=True)
        if self.path is not None:
            found = [
                {**asdict(each), "ratio": each.ratio, "verdict": each.verdict} for each in self.rows.values()
            ]
            self.path.write_text(json.dumps({"about": self.about, "rows": found}, indent=1) + "\n", "utf-8")
            self.path.with_suffix(".md").write_text(self.table() + "\n", "utf-8")

    def table(self) -> str:
        about = "\n".join(f"- {name}: {value}" for name, value in self.about.items())
        return "\n".join([f"# GPU\n\n{about}\n\n{_HEAD}", *(row.line() for row in self.rows.values())])

    def attempt(self, name: str, work: Callable[[], Found]) -> Found | None:
        """What fails is a row that says so, and the rest goes on."""
        if time.monotonic() - self._begun_s > self.seconds:
            self.add(Row(name, failed="no time was left"))
            return None
        self.rows.pop(name, None)  # of an earlier call, and maybe of its failure
        try:
            return work()
        except Exception as error:
            traceback.print_exc()
            self.add(Row(name, failed=f"{type(error).__name__}: {error}".splitlines()[0][:200]))
            return None

    def time(
        self,
        name: str,
        work: Callable[[], float],
        floor_s: float | None = None,
        target: float | None = None,
        most_s: float | None = None,
    ) -> float | None:
        """`work` returns its seconds; it is done three times. Returns the middle."""
        samples = self.attempt(name, lambda: [work() for _ in range(3)])
        if samples is None:
            return None
        middle = statistics.median(samples)
        floor, most = (None if each is None else 1e3 * each for each in (floor_s, most_s))
        spread = (max(samples) - min(samples)) / middle
        self.add(Row(name, "ms", 1e3 * middle, spread, floor, target, most))
        return middle

    def check(self, name: str, work: Callable[[], None]) -> None:
        """Whether something is right: it raises where it is not."""
        if self.attempt(name, lambda: work() or True):
            self.add(Row(name, "mistakes", 0.0, most=0.0))
