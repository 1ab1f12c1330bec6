"""Per-token metrics are plain numbers, and read as Prometheus' own would."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from router.http.token_tally import _BOUNDS_S, TokenTally


def page(registry: CollectorRegistry, name: str) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if name in line and "_created" not in line)


@pytest.mark.parametrize("elapsed_s", [0.001, 0.01, 0.0101, 0.3, 80.0, 500.0])
def test_intervals_fall_into_the_buckets_that_a_histogram_puts_them_in(elapsed_s: float) -> None:
    name, text = "trunkline_inter_token_latency_seconds", "Between two tokens of one sequence."
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TokenTally("tiny")
    ours.register(tally)
    histogram = Histogram(name, text, ["model_name"], registry=theirs, buckets=_BOUNDS_S).labels("tiny")
    tally.add(1, 0.2), histogram.observe(0.2)
    tally.add(1, elapsed_s), histogram.observe(elapsed_s)
    assert page(ours, name) == page(theirs, name)


def test_tokens_that_come_together_share_their_interval() -> None:
    registry = CollectorRegistry()
    tally = TokenTally("tiny")
    registry.register(tally)
    tally.add(3, None)
    tally.add(4, 0.2)
    labels = {"model_name": "tiny"}
    name = "trunkline_inter_token_latency_seconds"
    assert registry.get_sample_value("trunkline_generation_tokens_total", labels) == 7
    assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": "0.05"}) == 4
    assert registry.get_sample_value(f"{name}_sum", labels) == pytest.approx(0.2)
