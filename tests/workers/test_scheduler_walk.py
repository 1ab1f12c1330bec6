"""A random walk over the scheduler: requests come, run, are preempted and aborted; each gets exactly its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol.errors import ContextLengthExceeded
from protocol.messages import FinishReason
from protocol.tokens import pack_tokens
from workers.scheduling.admission_orders import FirstComeFirstServed, LongestMatchFirst, ResponseRatio
from workers.scheduling.sequence import sequence_seed
from workers.scheduling.waiting_line import WaitingLine

EOS = tuple(range(60))  # one token in sixteen or so ends a sequence
AGEING_S = 1.0
PROMPTS = st.one_of(
    st.integers(1, 30).map(range),  # share prefixes
    st.lists(st.integers(0, 999), min_size=1, max_size=30),
)


class SchedulerWalk(RuleBasedStateMachine):
    def __init__(self, driver: Any, expected_tokens: Callable[..., list[int]]) -> None:
        super().__init__()
        self.driver = driver
        self.expected_tokens = expected_tokens
        self.wanted: dict[str, list[list[int]]] = {}  # by request, then sequence
        self.aborted: set[str] = set()

    @rule(
        prompt=PROMPTS,
        n=st.sampled_from([1, 1, 1, 2, 3]),
        max_tokens=st.integers(0, 12),
        priority=st.integers(0, 2),
        moved=st.integers(0, 4),
        bypass=st.booleans(),
    )
    def add(self, prompt: Any, n: int, max_tokens: int, priority: int, moved: int, bypass: bool) -> None:
        whole = [self.generation(prompt, max_tokens, index) for index in range(n)]
        generated = tuple(pack_tokens(tokens[:moved]) for tokens in whole)
        name = f"request-{self.driver.num_added}"
        try:
            self.driver.add(
                prompt,
                name,
                n=n,
                max_tokens=max_tokens,
                priority=priority,
                generated=generated,
                prompt_logprobs=1 if bypass else None,
            )
        except ContextLengthExceeded:
            assert len(prompt) + max_tokens - 1 > self.driver.scheduler.kv.pool.num_usable * 4
            return
        self.wanted[name] = [tokens[moved:] for tokens in whole]

    def generation(self, prompt: Any, max_tokens: int, index: int) -> list[int]:
        tokens = self.expected_tokens(prompt, max_tokens, sequence_seed(7, index))
        ends = (place for place, token in enumerate(tokens, 1) if token in EOS)
        return tokens[: next(ends, len(tokens))]

    @rule(steps=st.integers(1, 6))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.driver.step()

    @rule(seconds=st.sampled_from([0.1, 0.4, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.driver.now_s += seconds

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), in_flight=st.booleans())
    def abort(self, data: st.DataObject, in_flight: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        scheduler = self.driver.scheduler
        plan = scheduler.schedule(self.driver.now_s) if in_flight and not self.driver.in_flight else None
        if scheduler.abort(name):
            self.aborted.add(name)
        scheduler.check_integrity()
        if plan is not None:
            self.driver.complete(self.driver.runner.launch(plan))

    @rule()
    def reset_the_cache(self) -> None:
        in_use = self.driver.scheduler.load().num_used_blocks
        assert self.driver.scheduler.reset_prefix_cache() == in_use

    @invariant()
    def nothing_is_lost(self) -> None:
        self.driver.scheduler.check_integrity()

    @invariant()
    def no_plan_is_over_the_budget(self) -> None:
        assert all(plan.num_decodes + plan.num_prefill_tokens <= 16 for plan in self.driver.plans[-6:])

    def teardown(self) -> None:
        self.driver.run()
        for name, sequences in self.wanted.items():
            for index, tokens in enumerate(sequences):
                found = self.driver.tokens_of(name, index)
                if name in self.aborted:
                    assert found == tokens[: len(found)]
                else:
                    assert found == tokens
                    assert self.driver.last_of(name, index).finish_reason is not FinishReason.ABORT
        load = self.driver.scheduler.load()
        assert (load.num_running, load.num_waiting, load.waiting_prefill_tokens) == (0, 0, 0)
        assert self.driver.scheduler.reset_prefix_cache() == 0


def walk(
    make_driver: Callable[..., Any],
    expected_tokens: Callable[..., Any],
    order: type[WaitingLine] = ResponseRatio,
    **config: Any,
) -> None:
    limits = {"num_blocks": 14, "block_size": 4, "max_num_seqs": 5, "max_num_batched_tokens": 16, "eos": EOS}

    def start() -> SchedulerWalk:
        driver = make_driver(**{**limits, **config}, order=order(AGEING_S), priority_ageing_s=AGEING_S)
        driver.step_s = 0.05
        return SchedulerWalk(driver, expected_tokens)

    run_state_machine_as_test(
        start, settings=settings(max_examples=150, stateful_step_count=30, deadline=None)
    )


def test_any_walk_gives_each_request_its_tokens_and_frees_everything(
    make_driver: Callable[..., Any], expected_tokens: Callable[..., Any]
) -> None:
    walk(make_driver, expected_tokens)


def test_any_walk_whose_plans_overlap_does_too(
    make_driver: Callable[..., Any], expected_tokens: Callable[..., Any]
) -> None:
    walk(make_driver, expected_tokens, depth=2)


@pytest.mark.parametrize(
    ("order", "depth"), [(FirstComeFirstServed, 1), (LongestMatchFirst, 2), (ResponseRatio, 2)]
)
def test_any_walk_where_rows_are_short_does_too_in_every_order(
    make_driver: Callable[..., Any], expected_tokens: Callable[..., Any], order: type[WaitingLine], depth: int
) -> None:
    walk(make_driver, expected_tokens, order, depth=depth, max_num_seqs=2, max_begun_prefills=1)


def test_any_walk_without_prefix_caching_does_too(
    make_driver: Callable[..., Any], expected_tokens: Callable[..., Any]
) -> None:
    walk(make_driver, expected_tokens, enable_prefix_caching=False)
