"""The host plans step N+1 while the device runs N: its work hides behind a step that takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from protocol.block_hash import SECRET_BYTES, BlockHasher
from protocol.messages import Submit
from protocol.token_rows import TokenRows
from workers.background_runner import BackgroundRunner, BackgroundStep
from workers.engine import Engine
from workers.scheduling.scheduler import SchedulerConfig
from workers.step_plan import SampledTokens, StepPlan

Build = Callable[..., Submit]
PATIENCE_S = 10.0


class SlowDevice:
    """No step ends before the host has planned the next one, or has given up waiting for this one to end."""

    def __init__(self, own: Any) -> None:
        self.own = own
        self.facts = own.facts
        self.planned = threading.Semaphore(0)
        self.num_hidden = 0

    def launch(self, plan: StepPlan) -> SampledTokens:
        self.num_hidden += self.planned.acquire(timeout=PATIENCE_S)
        drawn: SampledTokens = self.own.launch(plan)
        return drawn

    def close(self) -> None:
        self.own.close()


class PlanWatcher(BackgroundRunner):
    """Tells the device of each plan but the first, and at the end of one that never comes."""

    def __init__(self, device: SlowDevice) -> None:
        super().__init__(device)
        self._device = device
        self.num_planned = 0

    def launch(self, plan: StepPlan) -> BackgroundStep:
        self.num_planned += 1
        if self.num_planned > 1:
            self._device.planned.release()
        return super().launch(plan)


@pytest.fixture
def device(runner: Any) -> SlowDevice:
    return SlowDevice(runner)


@pytest.fixture
def engine(device: SlowDevice) -> Iterator[Engine]:
    opened = Engine(PlanWatcher(device), SchedulerConfig(), BlockHasher(bytes(SECRET_BYTES), 4))
    yield opened
    device.planned.release()
    opened.close()


def test_each_step_is_planned_while_the_one_before_runs(
    engine: Engine, device: SlowDevice, submit: Build
) -> None:
    engine.submit(submit(max_tokens=8))
    for _ in range(6):
        engine.step()
    assert device.num_hidden == 6


def test_overlapped_steps_bring_the_tokens_of_plain_ones(runner: Any, submit: Build) -> None:
    engine = Engine(BackgroundRunner(runner), SchedulerConfig(), BlockHasher(bytes(SECRET_BYTES), 4))
    for name, first in (("a", 20), ("b", 500)):
        engine.submit(replace(submit(prompt=range(first, first + 9), max_tokens=6), request_id=name))
    found: dict[str, list[int]] = {"a": [], "b": []}
    rows = TokenRows()
    while engine.has_work:
        report = engine.step()
        for output in rows.expand(report.outputs, report.rows, report.tokens):
            found[output.request_id] += output.token_ids
    engine.close()
    assert found == {"a": [*range(29, 35)], "b": [*range(509, 515)]}
    assert runner.closed


def test_a_step_that_fails_on_the_devices_thread_fails_the_engines_step(runner: Any, submit: Build) -> None:
    runner.fails_at = 2
    engine = Engine(BackgroundRunner(runner), SchedulerConfig(), BlockHasher(bytes(SECRET_BYTES), 4))
    engine.submit(submit(max_tokens=8))
    with pytest.raises(RuntimeError, match="on fire"):
        for _ in range(4):
            engine.step()
    engine.close()
