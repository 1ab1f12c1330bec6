"""With one shape for all rows, a query's bits depend on itself and its keys alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.gpu.attention.plan import AttentionShape, QueryColumns

MakeStep = Any  # of this folder's conftest

SHAPE = AttentionShape(16, 32, 4, 3, 64)
PLAIN = AttentionVariant(scale=0.125)
VARIANTS = {
    "plain": PLAIN,
    "window": replace(PLAIN, window=50),
    "everything": AttentionVariant(0.3, 70, 0.8, (0.7, 0.3)),
}
PROMPT = 130
WALKED = {"num_slots": 0}
SIDE_BY_SIDE = {"enough_programs": 10_000}

Compute = Callable[..., Tensor]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> AttentionVariant:
    return VARIANTS[request.param]


@pytest.fixture(autouse=True)
def products_that_round_every_row_alike(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """As matrix instructions do. The library that triton's interpreter multiplies with rounds by a row's place."""

    def multiply(_: object, a: Any, b: Any, acc: Any, *options: object) -> interpreter.TensorHandle:
        products = a.data[:, :, None] * b.data[None]
        return interpreter.TensorHandle(products.sum(1) + acc.data, acc.dtype.scalar)

    if device.type == "cpu":
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply)


@pytest.fixture
def compute(make_step: MakeStep, variant: AttentionVariant) -> Compute:
    """Of rows of a prompt, whose KV is there already; always in one shape."""
    prompt = make_step((16, 1, 2, 32), [(0, PROMPT)])

    def of_rows(*rows: tuple[int, int], splits: dict[str, int] = WALKED) -> Tensor:
        step = prompt.part(*[QueryRow(0, start, count) for start, count in rows])
        out: Tensor = step.compute(variant, step.planner(SHAPE, SHAPE, **splits))
        return out

    return of_rows


@pytest.mark.parametrize("chunks", ((37, 60, 33), (64, 66), (129, 1), (1, 2, 3, 124)), ids=str)
def test_chunks_have_the_bits_of_the_whole(chunks: tuple[int, ...], compute: Compute) -> None:
    starts = [sum(chunks[:index]) for index in range(len(chunks))]
    parts = [compute((start, count)) for start, count in zip(starts, chunks, strict=True)]
    assert torch.equal(torch.cat(parts), compute((0, PROMPT)))


def test_a_suffix_behind_a_cached_prefix_has_the_bits_of_the_cold_prompt(compute: Compute) -> None:
    assert torch.equal(compute((96, PROMPT - 96)), compute((0, PROMPT))[96:])


def test_a_row_that_decodes_has_the_bits_of_the_prompt_with_its_token(compute: Compute) -> None:
    whole = compute((0, PROMPT))
    for position in (31, 32, 63, 64, 100, 129):
        assert torch.equal(compute((position, 1), splits=SIDE_BY_SIDE)[0], whole[position])


def test_a_row_in_a_batch_has_its_bits_alone(compute: Compute) -> None:
    rows = [(0, 1), (99, 1), (120, 1), (0, 9), (100, 21)]
    together = torch.split(compute(*rows), [count for _, count in rows])
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(compute(row), found)


def test_splits_side_by_side_have_the_bits_of_splits_that_are_walked(compute: Compute) -> None:
    rows = [(20, 1), (129, 1), (61, 6)]
    assert torch.equal(compute(*rows, splits=SIDE_BY_SIDE), compute(*rows, splits=WALKED))


def test_the_two_ways_to_split_are_what_these_tests_compare(make_step: MakeStep) -> None:
    step = make_step((16, 1, 2, 32), [(129, 1), (50, 25)])

    def num_splits(planner: Any) -> list[int]:
        return [planned.launch.num_splits for planned in planner.plan(QueryColumns.of(step.rows))]

    assert num_splits(step.planner(SHAPE, SHAPE, **WALKED)) == [1, 1]
    assert num_splits(step.planner(SHAPE, SHAPE, **SIDE_BY_SIDE)) == [3, 2]
