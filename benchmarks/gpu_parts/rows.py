"""A figure beside its floor: the table that `gpu.py` prints last, and the JSON beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """`floor`: what the ceilings that this run has measured would allow; `target`: the share of it to reach."""

    name: str
    unit: str
    measured: float
    spread: float  # of the repetitions, relative
    floor: float | None = None
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.floor is None else self.floor / self.measured

    @property
    def verdict(self) -> str:
        if self.ratio is None or self.target is None:
            return ""
        return "PASS" if self.ratio >= self.target else "MISS"


def timed(name: str, work: Callable[[], float], floor_s: float | None, target: float | None = None) -> Row:
    """`work` returns its seconds; it is done three times."""
    samples = [work() for _ in range(3)]
    middle = statistics.median(samples)
    floor = None if floor_s is None else 1e3 * floor_s
    return Row(name, "ms", 1e3 * middle, (max(samples) - min(samples)) / middle, floor, target)


def print_rows(rows: Sequence[Row]) -> None:
    print("| | measured | spread | floor | floor : measured | target | |\n|---|---|---|---|---|---|---|")
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:.3f}"
        ratio = "" if row.ratio is None else f"{100 * row.ratio:.0f} %"
        target = "" if row.target is None else f"{100 * row.target:.0f} %"
        measured = f"{row.measured:.3f} {row.unit}"
        print(
            f"| {row.name} | {measured} | {100 * row.spread:.0f} % | {floor} | {ratio} | {target} | {row.verdict} |"
        )


def write_rows(path: Path, rows: Sequence[Row], **about: object) -> None:
    found = [{**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows]
    path.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n", encoding="utf-8")
