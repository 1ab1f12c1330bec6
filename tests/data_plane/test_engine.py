"""The engine between scheduler and runner: deadlines, speeds, and an honest account of what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.errors import ContextLengthExceeded
from protocol.messages import FinishReason, Submit
from protocol.token_rows import TokenRows
from workers.engine import Engine
from workers.engine_builder import warm_up
from workers.scheduling.scheduler import SchedulerConfig

Build = Callable[..., Submit]


class Clock:
    """Moves by `step_s` at every look."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def engine_on(runner: Any, clock: Clock) -> Engine:
    return Engine(runner, SchedulerConfig(), BlockHasher(bytes(24), 4), clock)


def test_a_request_past_its_deadline_is_aborted_and_frees_its_blocks(runner: Any, submit: Build) -> None:
    clock = Clock()
    engine = engine_on(runner, clock)
    engine.submit(replace(submit(max_tokens=100), deadline_s=5.0))
    engine.step()
    clock.now_s = 5.0
    output = engine.step().outputs[0]
    assert output.finish_reason is FinishReason.ABORT
    assert not engine.has_work and engine.load().num_used_blocks == 0


def test_a_finished_request_is_not_missed_by_its_deadline(runner: Any, submit: Build) -> None:
    clock = Clock()
    engine = engine_on(runner, clock)
    engine.submit(replace(submit("first", max_tokens=1), deadline_s=5.0))
    engine.step()
    clock.now_s = 9.0
    engine.submit(submit("second", max_tokens=1))
    assert [output.request_id for output in engine.step().outputs] == ["second"]


def test_a_refused_request_leaves_no_work(runner: Any, submit: Build) -> None:
    engine = engine_on(runner, Clock())
    with pytest.raises(ContextLengthExceeded):
        engine.submit(submit(prompt=range(1, 300)))
    assert not engine.has_work


def test_only_what_can_still_run_of_a_moved_request_is_awaited(runner: Any, submit: Build) -> None:
    engine = engine_on(runner, Clock())
    moved = replace(submit(n=3), generated=(b"\x14\0\0\0", b"", b""), finished=(1,))
    engine.submit(moved)
    outputs, rows = [], TokenRows()
    while engine.has_work:
        report = engine.step()
        outputs += rows.expand(report.outputs, report.rows, report.tokens)
    tokens = {
        index: [token for output in outputs if output.index == index for token in output.token_ids]
        for index in range(3)
    }
    assert tokens == {0: [21, 22], 1: [], 2: [20, 21, 22]}


def test_speeds_are_learnt_from_its_own_steps(runner: Any, submit: Build) -> None:
    engine = engine_on(runner, Clock(step_s=0.5))
    engine.submit(submit(prompt=range(10, 110), max_tokens=3))
    while engine.has_work:
        engine.step()
    load = engine.load()
    assert load.prefill_s_per_token == pytest.approx(0.005)
    assert load.decode_step_s == pytest.approx(0.5)


def test_the_warm_up_leaves_nothing_behind(runner: Any) -> None:
    engine = engine_on(runner, Clock())
    warm_up(engine)
    report = engine.idle_report()
    assert report.events == () and engine.snapshot() == b"" and not engine.has_work
