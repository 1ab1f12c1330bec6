"""One tenant floods simulated replicas: what another's time to the first token becomes, shared fairly and not.

    python benchmarks/fairness.py [--seeds N]

Replicas are fluid, and for the rows named exact step through the product's own scheduler. The light tenant sends a
tenth of what all replicas can prefill, behind one system prompt; the heavy one sends documents. `one tenant` is the
same trace if nobody knew whose requests are whose. Every figure is the median of the seeds'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

from report import print_header

from simulator.comparison import percentile
from simulator.exact import ExactReplicas
from simulator.flood import Flood, of_one_tenant, together, ttfts_s
from simulator.policies.registry import ORDERS, OUR_ORDER, POLICIES
from simulator.simulation import Deployment, Simulation, fluid_replicas
from simulator.trace import TraceRequest

CACHE_BLOCKS = 1000
# (replicas, overload, seconds, mean output tokens, exact)
FLOODS = [
    (2, 1.5, 60.0, 200, False),
    (2, 4.0, 60.0, 200, False),
    (2, 4.0, 60.0, 1000, False),
    (8, 4.0, 30.0, 200, False),
    (8, 10.0, 15.0, 200, False),
    (32, 4.0, 10.0, 200, False),
    (2, 4.0, 20.0, 200, True),
    (4, 2.0, 20.0, 200, True),
]
HEADINGS = "| replicas | overload | output | fidelity | alone p50 / p95 s | flooded | | one tenant | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print_header("Fairness between tenants", cache_blocks=CACHE_BLOCKS, seeds=options.seeds)
    print(HEADINGS + "\n" + "|---" * (HEADINGS.count("|") - 1) + "|")
    for shape in FLOODS:
        print(row(*shape, seeds=range(options.seeds)), flush=True)


def row(
    num_replicas: int, overload: float, lasts_s: float, output: int, exact: bool, seeds: Sequence[int]
) -> str:
    runs = [
        measured(
            Flood(num_replicas, overload=overload, lasts_s=lasts_s, output_tokens=output, seed=seed), exact
        )
        for seed in seeds
    ]
    alone, flooded, one = (
        [median(values) for values in zip(*each, strict=True)] for each in zip(*runs, strict=True)
    )
    cells = [str(num_replicas), f"{overload:g}", str(output), "exact" if exact else "fluid", _seconds(alone)]
    for each in (flooded, one):
        cells += [_seconds(each), f"x{each[0] / alone[0]:.1f}"]
    return "| " + " | ".join(cells) + " |"


def measured(flood: Flood, exact: bool) -> tuple[tuple[float, float], ...]:
    """p50 and p95 of the light tenant: alone, in the flood, and if they were one tenant."""
    both = together(flood.light(), flood.heavy())
    traces = (together(flood.light()), both, of_one_tenant(both))
    return tuple(_light(flood, trace, exact) for trace in traces)


def _light(flood: Flood, trace: list[TraceRequest], exact: bool) -> tuple[float, float]:
    make = ExactReplicas() if exact else fluid_replicas
    deployment = Deployment(flood.num_replicas, CACHE_BLOCKS, make_replicas=make)
    simulation = Simulation(trace, deployment, POLICIES["trunkline"], ORDERS[OUR_ORDER])
    simulation.run()
    found = ttfts_s(simulation, flood.light())
    return percentile(found, 0.5), percentile(found, 0.95)


def _seconds(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} / {values[1]:.2f}"


if __name__ == "__main__":
    main()
