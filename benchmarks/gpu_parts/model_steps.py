"""Single steps of a whole model against their floors: decode, prefill, the kinds of weights and of keys and values."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu_parts.gaps import GapRunner
from gpu_parts.models import Machine, Model, open_model
from gpu_parts.requests import loop_s
from gpu_parts.rows import Row
from gpu_parts.step_times import DRAWN, decode_s, fits, prefill_s

_DECODE_TARGETS = {(1, 1024): 0.80, (32, 1024): 0.78, (256, 1024): 0.75, (256, 256): 0.70}
_PREFILL_TARGET = 0.75
_KINDS_BATCHES = (1, 32, 256)  # of all but the plain model
_MOST_GAP_US = 150.0
_MOST_SLOWER = 1.2  # of the deterministic mode
_FP8 = {"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}


def time_steps(machine: Machine) -> None:
    """The plain model whole; of the others what is asked for."""
    plain = _open(machine, "", {})
    kinds = [("deterministic, ", {"deterministic": True})]
    if machine.device.type == "cuda":
        kinds += [
            ("fp8 weights, ", _FP8[0]),
            ("fp8 KV, ", _FP8[1]),
            ("fp8 weights and KV, ", _FP8[0] | _FP8[1]),
        ]
    for name, options in kinds:
        found = _open(machine, name, options)
        for key, seconds in found.items() if "deterministic" in options else ():
            if key in plain:
                slower = seconds / plain[key]
                machine.report.add(Row(f"{name}decode {key}: plain", "times", slower, most=_MOST_SLOWER))


def _open(machine: Machine, name: str, options: dict[str, Any]) -> dict[str, float]:
    """Seconds by batch and length, of the rows that did not fail."""
    decoded: dict[str, float] = {}

    def measure() -> None:
        with open_model(machine, **options) as model:
            bench = StepBench(machine, model, name, options, decoded)
            bench.decode()
            if not options:
                bench.draw()
                bench.prefill()
                bench.gap()

    machine.report.attempt(f"{name}model", measure)
    return decoded


@dataclass
class StepBench:
    machine: Machine
    model: Model
    kind: str
    options: dict[str, Any]
    decoded: dict[str, float]  # filled

    def decode(self) -> None:
        scope = self.machine.scope
        batches = [each for each in scope.batches if not self.options or each in _KINDS_BATCHES]
        for batch in batches:
            for length in scope.lengths:
                if fits(self.model.runner, batch, length) and length > scope.steps + 8:
                    work = partial(decode_s, self.model.runner, batch, length, scope.steps)
                    self._decode(f"{batch} x {length}", work, batch, length)

    def draw(self) -> None:
        scope = self.machine.scope
        batch, length = scope.batches[-1], scope.lengths[0]
        work = partial(decode_s, self.model.runner, batch, length, scope.steps, DRAWN)
        self._decode(f"{batch} x {length}, temperature, top-k and top-p", work, batch, length)

    def prefill(self) -> None:
        machine, scope = self.machine, self.machine.scope
        for tokens in scope.chunks:
            if tokens <= scope.max_num_batched_tokens and fits(self.model.runner, 1, tokens + 1):
                floor_s = scope.shape.prefill_floor_s(tokens, 0, scope.dtype.itemsize, machine.ceilings)
                work = partial(prefill_s, self.model.runner, tokens)
                machine.report.time(f"prefill {tokens}", work, floor_s, _PREFILL_TARGET)

    def gap(self) -> None:
        """Through the whole loop, as it serves."""
        scope, report = self.machine.scope, self.machine.report
        batch, length = scope.batches[-1], scope.lengths[0]
        name = f"engine loop {batch} x {length}"
        if self.machine.device.type == "cpu":
            report.time(name, lambda: loop_s(self.model.engine, batch, length, scope.steps))
            return
        watched = GapRunner(self.model.runner)
        engine = self.model.engine_with(runner=watched)
        if report.time(name, lambda: loop_s(engine, batch, length, scope.steps)) is None:
            return
        gaps_us = [1e6 * gap_s for gap_s in watched.gaps_s(scope.steps)]
        middle, longest = statistics.median(gaps_us), max(gaps_us)
        report.add(Row(f"gap between steps of {batch} rows", "us", middle, most=_MOST_GAP_US))
        report.add(Row(f"gap between steps of {batch} rows, longest", "us", longest))

    def _decode(self, name: str, work: Any, batch: int, length: int) -> None:
        machine, itemsize = self.machine, self.machine.scope.dtype.itemsize
        itemsizes = (
            1 if "quantization" in self.options else itemsize,
            itemsize,
            1 if "kv_cache_dtype" in self.options else itemsize,
        )
        floor_s = machine.scope.shape.decode_floor_s(batch, length, itemsizes, machine.ceilings)
        target = _DECODE_TARGETS.get((batch, length)) if name == f"{batch} x {length}" else None
        target = None if "deterministic" in self.options else target
        seconds = machine.report.time(f"{self.kind}decode {name}", work, floor_s, target)
        if seconds is not None:
            self.decoded[name] = seconds
