"""The trace of an autoscaling run as a plot: loads and replicas above, times to the first token below."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling_trace import Answer, Moment, quantile

BIN_S = 10.0


def draw(file: Path, trace: Sequence[Moment], scaled: Sequence[Answer], fixed: Sequence[Answer]) -> None:
    """An SVG whose text stays text. Needs matplotlib."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "trunkline", "font.size": 9})
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(9, 6), layout="constrained")
    _draw_replicas(above, trace)
    _draw_times(below, scaled, fixed)
    for axes in (above, below):
        axes.grid(alpha=0.25)
    _draw_phases(above, trace)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _draw_replicas(axes: Any, trace: Sequence[Moment]) -> None:
    times = [moment.at_s for moment in trace]
    axes.plot(times, [moment.offered for moment in trace], color="0.6", label="offered load")
    axes.plot(times, [moment.need for moment in trace], color="C1", label="need, as the controller counts it")
    axes.step(
        times, [moment.wanted for moment in trace], where="post", color="C0", ls="--", label="replicas wanted"
    )
    axes.step(
        times, [moment.ready for moment in trace], where="post", color="C0", lw=2, label="replicas ready"
    )
    axes.set_ylabel("replicas (loads: fully used)")
    axes.legend(loc="upper right")


def _draw_times(axes: Any, scaled: Sequence[Answer], fixed: Sequence[Answer]) -> None:
    for answers, share, style, name in (
        (scaled, 0.5, {"color": "C0"}, "p50, scaling"),
        (scaled, 0.99, {"color": "C3"}, "p99, scaling"),
        (fixed, 0.99, {"color": "0.6"}, "p99, always the most replicas"),
    ):
        bins = _binned(answers, share)
        middles = [(number + 0.5) * BIN_S for number in range(max(bins) + 1)]
        times = [bins.get(number, math.nan) for number in range(max(bins) + 1)]  # no line where nobody asked
        axes.plot(middles, times, ".-", ms=4, lw=1, label=name, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("time to first token, s")
    axes.set_xlabel(f"time, s; first tokens by {BIN_S:g} s of arrival")
    axes.legend(loc="upper center", bbox_to_anchor=(0.62, 1.0))


def _binned(answers: Sequence[Answer], share: float) -> dict[int, float]:
    """By the number of the bin."""
    bins: dict[int, list[float]] = {}
    for each in answers:
        if each.ttft_s is not None:
            bins.setdefault(int(each.arrival_s // BIN_S), []).append(each.ttft_s)
    return {number: quantile(sorted(times), share) for number, times in bins.items()}


def _draw_phases(axes: Any, trace: Sequence[Moment]) -> None:
    begins = {moment.phase: moment.at_s for moment in reversed(trace)}
    for phase, at_s in begins.items():
        axes.axvline(at_s, color="0.85", lw=1, zorder=0)
        axes.text(
            at_s, 1.0, f" {phase}", transform=axes.get_xaxis_transform(), va="bottom", fontsize=7, rotation=20
        )
