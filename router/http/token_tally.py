"""What is counted at every token: how many there were, and the time between two of one sequence.

Plain numbers, read when the metrics page is asked for. Prometheus' own counters and histograms, made for many threads,
take a fifth of what a streamed token costs the endpoint. Written by `request_metrics.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_BOUNDS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, math.inf),
)
_LABELS = ["model_name"]


class TokenTally(Collector):
    """Of one model."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._num_tokens = 0
        self._num_intervals = [0] * len(_BOUNDS_S)  # those of each bucket alone
        self._intervals_s = 0.0

    def add(self, count: int, elapsed_s: float | None) -> None:
        """`count` tokens of one sequence, `elapsed_s` after its last ones; None: they are its first."""
        self._num_tokens += count
        if elapsed_s is not None:
            self._num_intervals[bisect_left(_BOUNDS_S, elapsed_s / count)] += count
            self._intervals_s += elapsed_s

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "trunkline_generation_tokens", "Tokens that were generated.", labels=_LABELS
        )
        tokens.add_metric([self._model], self._num_tokens)
        yield tokens
        intervals = HistogramMetricFamily(
            "trunkline_inter_token_latency_seconds", "Between two tokens of one sequence.", labels=_LABELS
        )
        bounds, totals = map(floatToGoString, _BOUNDS_S), accumulate(self._num_intervals)
        intervals.add_metric([self._model], list(zip(bounds, totals, strict=True)), self._intervals_s)
        yield intervals
