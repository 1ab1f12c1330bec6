"""`trunkline simulate` at exact fidelity, and `--fit` to a report of a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.exact_policy import EXACT_POLICIES
from trunkline.cli import main


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty requests, some of which continue another."""
    rows = [
        {
            "timestamp": 3000 * (index // 4),
            "input_length": 512 * (2 + index % 8),
            "output_length": 4,
            "hash_ids": [0, *range(100 * (index % 5) + 1, 100 * (index % 5) + 2 + index % 8)],
        }
        for index in range(40)
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Sixty prompts of few sizes, far apart: 10 ms and 1 ms a token, 20 ms a step; the second half is slower."""
    rows = []
    for index in range(60):
        num_tokens = 100 * (1 + index % 3) + 48 * (index >= 30)
        ttft_s = (0.01 + 0.001 * num_tokens) * (1.0 if index < 30 else 1.25)
        row = {
            "arrival_s": 10.0 * index,
            "num_tokens": num_tokens,
            "num_output_tokens": 11,
            "cached_tokens": 0,
            "replica": "ab"[index % 2],
            "ttft_s": ttft_s,
            "end_to_end_s": ttft_s + 10 * 0.02,
            "blocks": list(range(1000 * index, 1000 * index - (-num_tokens // 16))),
        }
        rows.append(row)
    replicas = [{"name": name, "speeds": {}} for name in "ab"]
    deployment = {
        "model": "m",
        "policy": "trunkline",
        "block_size": 16,
        "num_blocks": 500,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "replicas": replicas,
    }
    file = tmp_path / "report.json"
    fields = {"format": 1, "trace_block_tokens": 16, "deployment": deployment, "requests": rows}
    file.write_text(json.dumps(fields), encoding="utf-8")
    return file


def test_exact_replicas_are_compared_under_every_policy_but_the_oracles(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--trace", str(trace), "--replicas", "2", "--fidelity", "exact"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(EXACT_POLICIES)
    assert "trunkline" in EXACT_POLICIES and "oracle" not in EXACT_POLICIES


def test_smaller_blocks_find_more_of_a_prompt(trace: Path, tmp_path: Path) -> None:
    def hit_rate(size: str) -> float:
        file = tmp_path / f"rows-{size}.json"
        options = ("--fidelity", "exact", "--policy", "trunkline", "--block-size", size, "--json", str(file))
        assert main(["simulate", "--trace", str(trace), "--replicas", "1", *options]) == 0
        return float(json.loads(file.read_text())[0]["hit_rate"])

    assert hit_rate("16") > hit_rate("512") > 0.0


def test_a_fit_says_how_far_the_simulation_is_off(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the first half: the second was slower by a quarter."""
    file = tmp_path / "fit.json"
    assert main(["simulate", "--fit", str(report), "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "all 60 requests" in printed and "the 30 that the model was not fitted to" in printed
    written = json.loads(file.read_text())
    assert written["model"]["token_s"] == pytest.approx(1e-3, rel=0.05)
    rest = {row["what"]: row for row in written["compared"]["the 30 that the model was not fitted to"]}
    assert rest["mean TTFT"]["error"] == pytest.approx(-0.2, abs=0.01)
    assert rest["hit rate"]["measured"] == rest["hit rate"]["simulated"] == 0.0


def test_nothing_but_one_of_trace_and_report_is_taken(
    trace: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ((), ("--trace", str(trace), "--fit", str(report))):
        assert main(["simulate", *options]) == 2
        assert "give either --trace, or a measured report with --fit" in capsys.readouterr().err


def test_a_policy_that_cannot_be_simulated_is_refused(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_text(report.read_text().replace('"trunkline"', '"tossed-coin"'))
    assert main(["simulate", "--fit", str(report)]) == 2
    assert "the policy of --fit must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--fidelity", "vague"), "--fidelity must be one of fluid, exact, not 'vague'"),
        (("--fidelity", "exact", "--block-size", "60"), "--block-size must divide the trace's blocks of 512"),
        (("--fidelity", "exact", "--policy", "oracle"), "--policy must be all or one of random"),
        (("--fidelity", "exact", "--order", "response-ratio-whole"), "--order must be all or one of"),
        (("--fidelity", "exact", "--cache-tokens", "1024"), "the KV pool holds 1024"),
    ],
)
def test_a_mistake_is_one_sentence(
    trace: Path, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--trace", str(trace), "--replicas", "2", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1
