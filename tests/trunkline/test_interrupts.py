"""Ctrl-C in the middle of a batch: it ends the batch, and the same LLM answers the next one as if nothing had been."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from trunkline import LLM, SamplingParams
from trunkline.interrupts import deferred_interrupts
from workers.runner import PendingStep
from workers.step_plan import StepPlan

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
STORY = "Once upon a time there was a fox who lived in a small house near the river. " * 4


class InterruptedRunner:
    """A terminal's Ctrl-C comes at the start of one step, before anything of it has been computed."""

    def __init__(self, own: Any, at_step: int) -> None:
        self._own = own
        self._steps_left = at_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def launch(self, plan: StepPlan) -> PendingStep:
        self._steps_left -= 1
        if self._steps_left == 0:
            signal.raise_signal(signal.SIGINT)
        pending: PendingStep = self._own.launch(plan)
        return pending


@pytest.mark.parametrize("at_step", [1, 3], ids=["in prefill", "in decode"])
def test_an_interrupted_batch_leaves_an_engine_that_answers_rightly(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, at_step: int
) -> None:
    llm.reset_prefix_cache()
    expected = llm.generate(STORY, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    llm.reset_prefix_cache()
    with monkeypatch.context() as patched:
        patched.setattr(llm._engine, "_runner", InterruptedRunner(llm._engine._runner, at_step))
        with pytest.raises(KeyboardInterrupt):
            llm.generate([STORY, "Hello"], GREEDY, use_tqdm=False)
    assert llm.get_metrics().num_used_blocks == 0
    assert llm.generate(STORY, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == expected


def test_a_second_interrupt_does_not_wait() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_somebody_else_s_is_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_other_threads_may_generate_too(llm: LLM) -> None:
    texts: list[str] = []
    thread = threading.Thread(
        target=lambda: texts.append(llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].text)
    )
    thread.start()
    thread.join(60)
    assert len(texts) == 1
