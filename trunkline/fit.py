"""`trunkline simulate --fit REPORT`: a service model fitted to a real run, and how far a simulation is from it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulator.exact_policy import EXACT_POLICIES
from simulator.fit import fitted
from simulator.measurement import read_measurement
from simulator.policies.registry import ORDERS, OUR_ORDER, chosen
from simulator.service_model import ServiceModel
from simulator.validation import Compared, compared, measured, simulated

HEADINGS = ("", "MEASURED", "SIMULATED", "ERROR")


def run(options: argparse.Namespace) -> int:
    """Fitted to the first half of the requests, so that the second says what the fit is worth."""
    measurement = read_measurement(Path(options.fit))
    [(_, policy)] = chosen(measurement.deployment.policy, EXACT_POLICIES, "the policy of --fit")
    half = len(measurement.requests) // 2
    model = fitted(measurement.requests[:half], measurement.deployment)
    simulation = simulated(measurement, model, policy, ORDERS[OUR_ORDER], options.seed)
    real = measured(measurement.requests)
    tables = {
        f"all {len(real)} requests": compared(real, simulation),
        f"the {len(real) - half} that the model was not fitted to": compared(real[half:], simulation[half:]),
    }
    print(render(model, tables))
    if options.json is not None:
        _write_json(options.json, model, tables)
    return 0


def render(model: ServiceModel, tables: Mapping[str, Sequence[Compared]]) -> str:
    """The model, then a table for each group of requests."""
    parts = [f"{field.name} {getattr(model, field.name):.4g}" for field in dataclasses.fields(model)]
    return "\n".join(
        ["model: " + ", ".join(parts), *(line for name in tables for line in _table(name, tables[name]))]
    )


def _table(name: str, rows: Sequence[Compared]) -> list[str]:
    cells = [(name, *HEADINGS[1:]), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    return [
        "",
        *(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in cells
        ),
    ]


def _cells(row: Compared) -> tuple[str, ...]:
    if row.share:
        percents = (f"{100 * value:.2f} %" for value in (row.measured, row.simulated))
        return row.what, *percents, f"{100 * row.error:+.2f} points"
    times = (f"{1e3 * value:.1f} ms" for value in (row.measured, row.simulated))
    return row.what, *times, f"{100 * row.error:+.1f} %"


def _write_json(file: str, model: ServiceModel, tables: Mapping[str, Sequence[Compared]]) -> None:
    rows = {
        name: [{**dataclasses.asdict(row), "error": row.error} for row in table]
        for name, table in tables.items()
    }
    text = json.dumps({"model": dataclasses.asdict(model), "compared": rows}, indent=2)
    Path(file).write_text(text + "\n", encoding="utf-8")
