"""Seconds of single steps: plans made by hand for a runner, so that any context can be had without computing it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.runner import PendingStep, Runner
from workers.step_plan import Chunk, RowStart, StepPlan

GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=0.8, top_p=0.95, top_k=50)


def fits(runner: Runner, rows: int, length: int) -> bool:
    facts = runner.facts
    return length <= facts.max_model_len and rows * -(-length // facts.block_size) < facts.num_blocks


def decode_s(runner: Runner, rows: int, length: int, steps: int, sampling: SamplingParams = GREEDY) -> float:
    """Per step of `rows` rows behind `length` keys, as many steps in flight as the engine would have."""
    flights: deque[PendingStep] = deque()
    plans = _decode_plans(runner, rows, length, steps, sampling)
    begun_s = 0.0
    for number, plan in enumerate(plans):
        if number == _WARM_STEPS:
            _drain(flights)
            begun_s = time.perf_counter()
        flights.append(runner.launch(plan))
        if len(flights) >= runner.facts.max_in_flight:
            flights.popleft().wait()
    _drain(flights)
    return (time.perf_counter() - begun_s) / steps


def prefill_s(runner: Runner, tokens: int, cached: int = 0) -> float:
    """Of one chunk of so many tokens behind `cached` ones, and the token that it draws."""
    numbers = [3 + 7 * index % (runner.facts.vocab_size - 3) for index in range(tokens)]
    plan = StepPlan(
        0,
        ends=(0,),
        starts=(RowStart(0, b"", b"", GREEDY, 0),),
        grown=((0, _blocks(runner, 0, cached + tokens)),),
        chunks=(Chunk(0, cached, pack_tokens(numbers), sample=True),),
    )
    begun_s = time.perf_counter()
    runner.launch(plan).wait()
    return time.perf_counter() - begun_s


_WARM_STEPS = 8


def _decode_plans(
    runner: Runner, rows: int, length: int, steps: int, sampling: SamplingParams
) -> Iterator[StepPlan]:
    """Behind the last step rows have `length` keys. What they read there is whatever the pool holds."""
    first = length - _WARM_STEPS - steps
    packed = pack_tokens(range(rows))
    for step in range(_WARM_STEPS + steps):
        positions = pack_tokens([first + step] * rows)
        if step:
            yield StepPlan(step, decode_rows=packed, decode_starts=positions)
            continue
        yield StepPlan(
            step,
            ends=tuple(range(rows)),
            starts=tuple(RowStart(row, b"", b"", sampling, row) for row in range(rows)),
            grown=tuple((row, _blocks(runner, row, length)) for row in range(rows)),
            decode_rows=packed,
            decode_starts=positions,
        )


def _blocks(runner: Runner, row: int, length: int) -> tuple[int, ...]:
    """Each row's own, all rows' side by side behind the null block."""
    count = -(-length // runner.facts.block_size)
    return tuple(range(1 + row * count, 1 + (row + 1) * count))


def _drain(flights: deque[PendingStep]) -> None:
    while flights:
        flights.popleft().wait()
