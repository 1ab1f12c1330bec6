"""The step thread by itself: commands between steps, and what is taken for a death."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from workers.engine import Engine, StepReport
from workers.step_loop import StepLoop


class StubbornEngine:
    """Has work once it was asked to; its step lasts until it is released."""

    def __init__(self) -> None:
        self.has_work = False
        self.released = threading.Event()

    def step(self) -> StepReport:
        self.wait_for_the_device()
        self.has_work = False
        return cast("StepReport", "stepped")

    def wait_for_the_device(self) -> None:
        self.released.wait()

    def idle_report(self) -> StepReport:
        return cast("StepReport", "idle")


def work(engine: Engine) -> None:
    cast("Any", engine).has_work = True


@pytest.fixture
def engine() -> Iterator[StubbornEngine]:
    made = StubbornEngine()
    yield made
    made.released.set()


def loop_over(engine: StubbornEngine, hang_timeout_s: float) -> tuple[StepLoop, queue.Queue[str]]:
    heard: queue.Queue[str] = queue.Queue()
    loop = StepLoop(
        cast("Engine", engine),
        cast("Any", heard.put),
        lambda trace: heard.put(f"died: {trace}"),
        hang_timeout_s,
    )
    loop.start()
    return loop, heard


def test_a_step_that_does_not_end_is_a_death_that_says_where_it_is_stuck(engine: StubbornEngine) -> None:
    loop, heard = loop_over(engine, hang_timeout_s=0.05)
    loop.post(work)
    death = heard.get(timeout=30)
    assert death.startswith("died: a step has taken more than 0.05 s") and "wait_for_the_device" in death
    engine.released.set()
    assert loop.stop(30)


def test_having_nothing_to_do_is_no_hang(engine: StubbornEngine) -> None:
    engine.released.set()
    loop, heard = loop_over(engine, hang_timeout_s=0.01)
    loop.post(work)
    assert heard.get(timeout=30) == "stepped"
    with pytest.raises(queue.Empty):
        heard.get(timeout=0.1)
    assert loop.stop(30)
