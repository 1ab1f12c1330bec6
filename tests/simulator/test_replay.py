"""A trace replayed against real routers, replica servers and schedulers on devices that only take time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.exact_policy import EXACT_POLICIES
from simulator.measurement import Measurement, read_measurement
from simulator.policies.registry import ORDERS, OUR_ORDER
from simulator.service_model import ServiceModel
from simulator.trace import BLOCK_TOKENS
from simulator.validation import measured, simulated

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_REQUESTS = 12


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two conversations that grow by a block, each turn after the one before has ended."""
    rows = [
        {
            "timestamp": 300 * index,
            "input_length": BLOCK_TOKENS * (1 + index // 2) + 40,
            "output_length": 2 + index % 2,
            "hash_ids": [*(1000 * (index % 2) + depth for depth in range(1 + index // 2)), 10_000 + index],
        }
        for index in range(NUM_REQUESTS)
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def replayed(trace: Path, policy: str) -> Measurement:
    report = trace.with_name("report.json")
    options = ("--system", "modelled", "--policy", policy, "--trace", str(trace), str(report))
    command = [sys.executable, "benchmarks/replay.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return read_measurement(report)


def test_a_replay_measures_every_request_and_says_where_it_ran(trace: Path) -> None:
    measurement = replayed(trace, "round-robin")
    assert [each.num_output_tokens for each in measurement.requests] == [2, 3] * (NUM_REQUESTS // 2)
    assert [each.replica for each in measurement.requests] == ["replica-0", "replica-1"] * (NUM_REQUESTS // 2)
    assert all(0.0 < each.ttft_s < each.end_to_end_s for each in measurement.requests)
    facts = measurement.deployment
    assert (facts.policy, facts.block_size, facts.num_blocks) == ("round-robin", 64, 8000)
    assert all(replica.speeds.measured for replica in facts.replicas)


def test_hits_of_a_replay_are_those_of_its_simulation(trace: Path) -> None:
    measurement = replayed(trace, "trunkline")
    outcomes = simulated(measurement, ServiceModel(), EXACT_POLICIES["trunkline"], ORDERS[OUR_ORDER])
    cached = [outcome.cached_tokens for outcome in measured(measurement.requests)]
    assert cached == [outcome.cached_tokens for outcome in outcomes] and sum(cached) > 0
