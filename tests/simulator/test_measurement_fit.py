"""A report of a real run: written, read, refused when wrong; and the service model fitted to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InvalidRequest
from simulator.exact import ExactReplicas
from simulator.exact_policy import EXACT_POLICIES
from simulator.fit import fitted
from simulator.measurement import (
    MeasuredDeployment,
    MeasuredReplica,
    MeasuredRequest,
    Measurement,
    read_measurement,
    write_measurement,
)
from simulator.policies.registry import ORDERS, OUR_ORDER
from simulator.service_model import ServiceModel
from simulator.simulation import Deployment, Simulation
from simulator.trace import BLOCK_TOKENS, TraceRequest
from simulator.validation import Compared, compared, measured, simulated

TRUTH = ServiceModel(
    prefill_s=0.03,
    token_s=1e-4,
    token_pair_s=4e-9,
    prefill_slowdown=0.01,
    decode_step_s=0.03,
    decode_sequence_s=0.002,
    max_running=64,
)
NAMES = ("a", "b")
POLICY, ORDER = EXACT_POLICIES["trunkline"], ORDERS[OUR_ORDER]


def as_if_measured(requests: Sequence[TraceRequest], model: ServiceModel = TRUTH) -> Measurement:
    """A real run of two replicas, as a simulation of this model gives it."""
    where: dict[int, int] = {}

    class Remembering(POLICY):  # type: ignore[valid-type,misc]
        def dispatched(self, request: TraceRequest, replica: int) -> None:
            where[request.index] = replica
            super().dispatched(request, replica)

    simulation = Simulation(
        requests, Deployment(2, 400, model, make_replicas=ExactReplicas()), Remembering, ORDER
    )
    simulation.run()
    rows = []
    for sequence, ended_s in simulation.ended:
        request = sequence.request
        assert sequence.ttft_s is not None
        rows.append(
            MeasuredRequest(
                arrival_s=request.arrival_s,
                num_tokens=request.num_tokens,
                num_output_tokens=request.num_output_tokens,
                cached_tokens=sequence.cached_tokens,
                replica=NAMES[where[request.index]],
                ttft_s=sequence.ttft_s,
                end_to_end_s=ended_s - request.arrival_s,
                blocks=request.blocks,
            )
        )
    speeds = [replica.load.speeds for replica in simulation.replicas]
    replicas = tuple(MeasuredReplica(name, learnt) for name, learnt in zip(NAMES, speeds, strict=True))
    deployment = MeasuredDeployment(
        "none", "trunkline", 64, 400 * BLOCK_TOKENS // 64, model.max_running, 2048, replicas
    )
    return Measurement(BLOCK_TOKENS, deployment, tuple(sorted(rows, key=lambda row: row.arrival_s)))


@pytest.fixture
def calm_trace(busy_trace: list[TraceRequest]) -> list[TraceRequest]:
    """A request a second: prefills are mostly alone, decodes in company."""
    return [replace(each, arrival_s=1.0 * each.index) for each in busy_trace[:160]]


@pytest.fixture
def measurement(calm_trace: list[TraceRequest]) -> Measurement:
    return as_if_measured(calm_trace)


@pytest.fixture
def short_report(calm_trace: list[TraceRequest], tmp_path: Path) -> Path:
    """Of two requests."""
    file = tmp_path / "report.json"
    write_measurement(file, as_if_measured(calm_trace[:2]))
    return file


def test_the_model_that_made_a_report_is_found_in_it(measurement: Measurement) -> None:
    model = fitted(measurement.requests, measurement.deployment)
    for cached, uncached in ((0, 50), (0, 2000), (9000, 3000)):
        expected_s = TRUTH.prefill_time_s(cached, uncached)
        assert model.prefill_time_s(cached, uncached) == pytest.approx(expected_s, rel=0.05)
    assert model.step_s(1, False) == pytest.approx(TRUTH.step_s(1, False), rel=0.1)
    assert model.step_s(4, False) == pytest.approx(TRUTH.step_s(4, False), rel=0.15)


def test_a_machine_that_pauses_now_and_then_changes_the_fit_little(measurement: Measurement) -> None:
    paused = [
        replace(each, ttft_s=each.ttft_s + 1.0, end_to_end_s=each.end_to_end_s + 1.0)
        if index % 8 == 0
        else each
        for index, each in enumerate(measurement.requests)
    ]
    model, calm = fitted(paused, measurement.deployment), fitted(measurement.requests, measurement.deployment)
    assert model.prefill_time_s(0, 2000) == pytest.approx(calm.prefill_time_s(0, 2000), rel=0.1)


def test_what_would_take_less_than_no_time_is_left_out_of_the_fit(measurement: Measurement) -> None:
    """Long prompts that are cheaper by the token than short ones: no pair can cost anything."""
    sizes = [100 * (1 + index % 30) for index in range(60)]
    requests = [
        replace(
            measurement.requests[0],
            arrival_s=100.0 * index,
            num_tokens=size,
            ttft_s=0.001 * size - 1e-7 * size * size,
            end_to_end_s=5.0,
        )
        for index, size in enumerate(sizes)
    ]
    model = fitted(requests, measurement.deployment)
    assert model.token_pair_s == 0.0 <= model.prefill_s
    seconds = [model.prefill_time_s(0, size) for size in sizes]
    assert sum(seconds) == pytest.approx(sum(request.ttft_s for request in requests), rel=0.03)


def test_the_simulation_of_a_report_of_its_own_model_agrees(measurement: Measurement) -> None:
    model = fitted(measurement.requests[:100], measurement.deployment)
    rows = compared(measured(measurement.requests), simulated(measurement, model, POLICY, ORDER))
    errors = {row.what: row.error for row in rows}
    assert errors["mean TTFT"] == pytest.approx(0.0, abs=0.1) and abs(errors["hit rate"]) < 0.03
    assert errors["mean end to end"] == pytest.approx(0.0, abs=0.1)


def test_errors_are_relative_but_for_shares() -> None:
    assert Compared("mean TTFT", 2.0, 2.5).error == pytest.approx(0.25)
    assert Compared("hit rate", 0.2, 0.25, share=True).error == pytest.approx(0.05)


def test_a_report_too_busy_to_learn_from_is_refused(busy_trace: list[TraceRequest]) -> None:
    crowded = as_if_measured([replace(each, arrival_s=0.001 * each.index) for each in busy_trace[:40]])
    with pytest.raises(
        InvalidRequest, match=r"only \d+ requests of the report .*: measure more, or at less load"
    ):
        fitted(crowded.requests, crowded.deployment)


def test_a_report_of_single_tokens_is_refused(calm_trace: list[TraceRequest]) -> None:
    single = as_if_measured([replace(each, num_output_tokens=1) for each in calm_trace])
    with pytest.raises(InvalidRequest, match="no request of the report had a second token"):
        fitted(single.requests, single.deployment)


def test_a_report_is_read_as_it_was_written(calm_trace: list[TraceRequest], short_report: Path) -> None:
    assert read_measurement(short_report) == as_if_measured(calm_trace[:2])


def spoilt(fields: dict[str, Any], request: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    rows = [{**fields["requests"][0], **(request or {})}, *fields["requests"][1:]]
    return {**fields, "requests": rows, **top}


@pytest.mark.parametrize(
    ("request_change", "top_change", "sentence"),
    [
        ({}, {"format": 7}, "has the format 7, not 1: measure again"),
        ({}, {"requests": []}, "holds no requests or no replicas"),
        ({}, {"deployment": {}}, "is not one of benchmarks/replay.py"),
        ({}, {"trace_block_tokens": 0}, "needs block sizes and a number of blocks above zero"),
        ({"colour": "red"}, {}, "is not one of benchmarks/replay.py: .*request 0"),
        ({"ttft_s": "soon"}, {}, "is not one of benchmarks/replay.py: .*request 0: ttft_s"),
        ({"arrival_s": float("nan")}, {}, "is not one of benchmarks/replay.py: .*request 0: arrival_s"),
        ({"num_tokens": 5.5}, {}, "is not one of benchmarks/replay.py: .*request 0: num_tokens"),
        ({"blocks": [1]}, {}, "says of request 0 that it has .* tokens in 1 blocks of 512"),
        ({"cached_tokens": -1}, {}, "says of request 0 that -1 of its"),
        ({"num_output_tokens": 0}, {}, "says of request 0 that no token came"),
        ({"replica": "c"}, {}, "says of request 0 that it ran on 'c', which is none of the replicas"),
        ({"ttft_s": 1e9}, {}, "says of request 0 that its first token came after"),
        ({"arrival_s": 1e9}, {}, "says of request 1 that it arrived before the one before it"),
    ],
)
def test_a_wrong_report_is_refused_with_a_sentence(
    short_report: Path, request_change: dict[str, Any], top_change: dict[str, Any], sentence: str
) -> None:
    fields = json.loads(short_report.read_text())
    short_report.write_text(json.dumps(spoilt(fields, request_change, **top_change)))
    with pytest.raises(InvalidRequest, match=f"the report .* {sentence}"):
        read_measurement(short_report)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff"])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"the report .* is not one of benchmarks/replay.py"):
        read_measurement(file)


def test_a_report_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"the report /no/such/report cannot be read"):
        read_measurement(Path("/no/such/report"))
