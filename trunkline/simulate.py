"""`trunkline simulate`: a trace of requests against simulated replicas, to compare policies and to plan capacity."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from protocol.errors import InvalidRequest
from simulator.comparison import Row, fewest_replicas, simulate
from simulator.exact import ExactReplicas
from simulator.exact_policy import EXACT_ORDERS, EXACT_POLICIES
from simulator.policies.registry import ORDERS, POLICIES, chosen
from simulator.prompts import check_block_size
from simulator.simulation import Deployment
from simulator.trace import BLOCK_TOKENS, TraceRequest, read_trace
from trunkline.simulated_conditions import duration_s, with_conditions

EXACT, FIDELITIES = "exact", ("fluid", "exact")
HEADINGS = ("POLICY", "ORDER", "REPLICAS", "MEAN TTFT s", "P50 s", "P99 s", "HIT %", "BUSY %")


def run(options: argparse.Namespace) -> int:
    for file in filter(None, (options.json, options.plot)):
        _check_writable(file)
    if (options.trace is None) == (options.fit is None):
        raise InvalidRequest("give either --trace, or a measured report with --fit", param="--trace")
    if options.fit is not None:
        from trunkline import fit  # numpy is of use here only

        return fit.run(options)
    return _simulate(options)


def _simulate(options: argparse.Namespace) -> int:
    deployment = deployment_from(options)
    if options.plot is not None:
        _check_matplotlib()
    slo_s = None if options.slo_ttft_p99 is None else seconds(options.slo_ttft_p99)
    requests = read_trace(Path(options.trace), options.speed)
    rows = list(_rows(options, requests, deployment, slo_s))
    print(render(rows))
    if options.json is not None:
        _write_json(options.json, rows)
    if options.plot is not None:
        _plot(options.plot, rows)
    return 0


def deployment_from(options: argparse.Namespace) -> Deployment:
    """Raises InvalidRequest with a sentence."""
    if options.replicas < 1:
        raise InvalidRequest(f"--replicas must be at least 1, not {options.replicas}", param="--replicas")
    if options.cache_tokens < BLOCK_TOKENS:
        raise InvalidRequest(
            f"--cache-tokens must be at least a block of {BLOCK_TOKENS}, not {options.cache_tokens}",
            param="--cache-tokens",
        )
    deployment = Deployment(options.replicas, options.cache_tokens // BLOCK_TOKENS, seed=options.seed)
    if options.fidelity not in FIDELITIES:
        raise InvalidRequest(
            f"--fidelity must be one of {', '.join(FIDELITIES)}, not {options.fidelity!r}", param="--fidelity"
        )
    if options.fidelity == EXACT:
        check_block_size(BLOCK_TOKENS, options.block_size)
        deployment = replace(deployment, make_replicas=ExactReplicas(options.block_size))
    return with_conditions(deployment, options)


def seconds(text: str) -> float:
    """Of `2s`, `500ms` or `2`. Raises InvalidRequest with a sentence."""
    return duration_s(text, "--slo-ttft-p99")


def render(rows: Sequence[Row]) -> str:
    """A table, one line a simulation."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _rows(
    options: argparse.Namespace, requests: Sequence[TraceRequest], deployment: Deployment, slo_s: float | None
) -> Iterator[Row]:
    exact = options.fidelity == EXACT
    for order in chosen(options.order, EXACT_ORDERS if exact else ORDERS, "--order"):
        for policy in chosen(options.policy, EXACT_POLICIES if exact else POLICIES, "--policy"):
            if sys.stderr.isatty():
                print(f"\r\x1b[K{policy[0]}, {order[0]}", end="\r", file=sys.stderr, flush=True)
            if slo_s is None:
                yield simulate(requests, deployment, policy, order)
            else:
                yield fewest_replicas(requests, deployment, policy, order, slo_s)


def _cells(row: Row) -> tuple[str, ...]:
    times = (f"{value:.2f}" for value in (row.mean_ttft_s, row.p50_ttft_s, row.p99_ttft_s))
    shares = (f"{100 * value:.1f}" for value in (row.hit_rate, row.busy))
    return row.policy, row.order, str(row.replicas), *times, *shares


def _write_json(file: str, rows: Sequence[Row]) -> None:
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
    Path(file).write_text(text + "\n", encoding="utf-8")


def _plot(file: str, rows: Sequence[Row]) -> None:
    """Two bars a simulation, mean and p99, on a logarithmic scale."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    places = range(len(rows))
    axes.barh([place - 0.2 for place in places], [row.mean_ttft_s for row in rows], 0.4, label="mean")
    axes.barh([place + 0.2 for place in places], [row.p99_ttft_s for row in rows], 0.4, label="p99")
    axes.set_yticks(places, [f"{row.policy}, {row.order}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("time to first token, s")
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)


def _check_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest("--plot needs matplotlib: `pip install matplotlib`", param="--plot")


def _check_writable(file: str) -> None:
    """Before minutes of simulation, not after."""
    path = Path(file)
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidRequest(f"{file} cannot be written: name a file in a directory that exists")
