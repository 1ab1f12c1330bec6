"""`trunkline simulate`: its table, its file of rows, how many replicas are enough, and its refusals."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import InvalidRequest
from simulator.comparison import fewest_replicas, percentile, simulate
from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES
from simulator.simulation import Deployment
from simulator.trace import read_trace
from trunkline.cli import main
from trunkline.simulate import seconds

OURS = ("trunkline", POLICIES["trunkline"])
ORDER = (OUR_ORDER, ORDERS[OUR_ORDER])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A hundred requests of a second each at most, four in every tick of three seconds."""
    rows = [
        {
            "timestamp": 3000 * (index // 4),
            "input_length": 512 * (2 + index % 20),
            "output_length": 3,
            "hash_ids": [0, *range(100 * index + 1, 100 * index + 2 + index % 20)],
        }
        for index in range(100)
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_a_table_has_a_line_for_every_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", str(trace), "--replicas", "2"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["POLICY", "ORDER", "REPLICAS"]
    assert [line.split()[0] for line in lines] == list(POLICIES)


def test_rows_are_written_for_programs(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ("--policy", "trunkline", "--order", "all", "--json", str(file))
    assert main(["simulate", "--trace", str(trace), "--replicas", "2", *options]) == 0
    rows = json.loads(file.read_text())
    assert [(row["policy"], row["order"]) for row in rows] == [("trunkline", order) for order in ORDERS]
    assert all(row["requests"] == 100 and 0 < row["mean_ttft_s"] <= row["p99_ttft_s"] for row in rows)
    assert all(0.0 <= row["hit_rate"] < 1.0 and 0.0 < row["busy"] <= 1.0 for row in rows)


def test_a_seed_makes_a_run_repeatable(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(seed: str) -> str:
        options = ("--policy", "random", "--speed", "20", "--replicas", "3", "--seed", seed)
        assert main(["simulate", "--trace", str(trace), *options]) == 0
        return capsys.readouterr().out

    assert printed("1") == printed("1") != printed("2")


def test_speed_brings_load(trace: Path) -> None:
    def mean_s(speed: float) -> float:
        return simulate(read_trace(trace, speed), Deployment(1, 100), OURS, ORDER).mean_ttft_s

    assert mean_s(1.0) < mean_s(5.0)


def test_as_few_replicas_as_keep_to_the_time_are_found(trace: Path) -> None:
    requests, slo_s = read_trace(trace, 10.0), 1.5
    row = fewest_replicas(requests, Deployment(64, 100), OURS, ORDER, slo_s)
    assert 1 < row.replicas < 64 and row.p99_ttft_s <= slo_s
    fewer = simulate(requests, Deployment(row.replicas - 1, 100), OURS, ORDER)
    assert fewer.p99_ttft_s > slo_s


def test_the_command_says_how_many_replicas_are_enough(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--policy", "trunkline", "--speed", "10", "--slo-ttft-p99", "1500ms", "--replicas", "64")
    assert main(["simulate", "--trace", str(trace), *options]) == 0
    row = fewest_replicas(read_trace(trace, 10.0), Deployment(64, 1000), OURS, ORDER, 1.5)
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["trunkline", OUR_ORDER, str(row.replicas)]


def test_a_time_that_no_allowed_number_of_replicas_keeps_is_refused(trace: Path) -> None:
    with pytest.raises(InvalidRequest, match="with 3 replicas the p99 TTFT under trunkline is above"):
        fewest_replicas(read_trace(trace), Deployment(3, 100), OURS, ORDER, 0.05)


@pytest.mark.parametrize(("text", "value"), [("2s", 2.0), ("500ms", 0.5), ("1.5", 1.5), (" 3s ", 3.0)])
def test_times_have_units(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--replicas", "0"), "--replicas must be at least 1"),
        (("--cache-tokens", "100"), "--cache-tokens must be at least a block of 512"),
        (("--policy", "best"), "--policy must be all or one of random, round-robin"),
        (("--order", "mine"), "--order must be all or one of first-come"),
        (("--slo-ttft-p99", "soon"), "--slo-ttft-p99 must be a time as 2s or 500ms, not 'soon'"),
        (("--slo-ttft-p99", "0s"), "--slo-ttft-p99 must be a time"),
        (("--speed", "0"), "--speed must be above zero"),
        (("--trace", "/no/such/trace"), "cannot read the trace /no/such/trace"),
        (
            ("--json", "/no/such/directory/rows.json"),
            "cannot be written: name a file in a directory that exists",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    trace: Path, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--trace", str(trace), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is there")
def test_a_plot_without_matplotlib_says_what_to_install(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--trace", str(trace), "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not there")
def test_a_plot_is_written(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    assert main(["simulate", "--trace", str(trace), "--policy", "random", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_percentiles_are_values_that_occurred() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]


def test_a_simulation_loads_neither_ray_nor_torch() -> None:
    code = "import sys, trunkline.simulate; print({'ray', 'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
