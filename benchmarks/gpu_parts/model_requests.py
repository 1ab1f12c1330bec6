"""Requests through an engine: first tokens behind a cached prefix, what caching costs without a hit, and loads whole,
beside transformers' continuous batching of the same load.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gpu_parts.models import Machine, Model, open_model
from gpu_parts.requests import OfflineLoad, first_token_s, offline_s
from gpu_parts.rows import Row
from gpu_parts.transformers_rate import transformers_rate

_SEED = 0
_REST = 64  # tokens of a prompt that are not cached
_MOST_FIRST_TOKEN_S, _LEAST_TIMES_FASTER = 0.008, 100.0
_MOST_COST_PERCENT = 1.0
_LEAST_TIMES_TRANSFORMERS = 5.0


def time_requests(machine: Machine) -> None:
    load = machine.scope.compared
    with open_model(machine) as model:
        _hits(machine, model)
        _cost_of_no_hits(machine, model)
        _rate(machine, model, "offline, generated", machine.scope.offline)
        rate = _rate(machine, model, f"offline, {load.requests} alike, generated", load)
    if machine.device.type == "cuda" and rate is not None:
        _beside_transformers(machine, load, rate)


def _hits(machine: Machine, model: Model) -> None:
    scope, report, chance = machine.scope, machine.report, random.Random(_SEED)
    prompts = [chance.choices(range(3, scope.shape.vocabulary), k=scope.hit - _REST) for _ in range(3)]
    tails = iter(range(3, 1000))

    def ask(prompt: list[int]) -> float:
        tail = next(tails)
        return first_token_s(model.engine, [*prompt, *[tail] * _REST], f"hit {tail}")

    cold = iter(prompts)
    floor_s = scope.shape.prefill_floor_s(_REST, scope.hit - _REST, scope.dtype.itemsize, machine.ceilings)
    cold_floor_s = scope.shape.prefill_floor_s(scope.hit, 0, scope.dtype.itemsize, machine.ceilings)
    cold_s = report.time(f"first token of {scope.hit}, cold", lambda: ask(next(cold)), cold_floor_s)
    name, most_s = f"first token of {scope.hit}, all but {_REST} cached", None
    if machine.device.type == "cuda":
        most_s = _MOST_FIRST_TOKEN_S
    hit_s = report.time(name, lambda: ask(prompts[0]), floor_s, most_s=most_s)
    if cold_s is not None and hit_s is not None:
        report.add(Row(f"{name}: faster than cold", "times", cold_s / hit_s, least=_LEAST_TIMES_FASTER))


def _cost_of_no_hits(machine: Machine, model: Model) -> None:
    """The same requests, none like another, in turns with and without a prefix cache."""
    load, name = machine.scope.compared, "cost of the prefix cache without a hit"

    def seconds() -> tuple[float, float]:
        caching, plain = model.engine_with(), model.engine_with(enable_prefix_caching=False)
        offline_s(plain, load, 99)
        pairs = [(offline_s(caching, load, seed)[0], offline_s(plain, load, seed)[0]) for seed in range(5)]
        return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)

    found = machine.report.attempt(name, seconds)
    if found is not None:
        cost = 100 * (found[0] / found[1] - 1)
        machine.report.add(Row(name, "%", cost, most=_MOST_COST_PERCENT))


def _rate(machine: Machine, model: Model, name: str, load: OfflineLoad) -> float | None:
    def measure() -> float:
        seconds, num_tokens = offline_s(model.engine, load, _SEED)
        return num_tokens / seconds

    return _rated(machine, name, measure)


def _rated(machine: Machine, name: str, measure: Callable[[], float]) -> float | None:
    found = machine.report.attempt(name, measure)
    if found is not None:
        machine.report.add(Row(name, "tokens/s", found))
    return found


def _beside_transformers(machine: Machine, load: OfflineLoad, own: float) -> None:
    numbers = load.requests, load.prompt[0], load.output[0], _SEED
    theirs = _rated(
        machine,
        "transformers, the same load",
        lambda: transformers_rate(str(machine.directory), *numbers),
    )
    if theirs is not None:
        times = Row("faster than transformers", "times", own / theirs, least=_LEAST_TIMES_TRANSFORMERS)
        machine.report.add(times)
