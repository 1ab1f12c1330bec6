"""The kernel against its meaning, odd sizes first. What no row has written is NaN in every test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention.plan import AttentionShape

AssertClose = Callable[[torch.Tensor, torch.Tensor], None]
MakeStep = Any  # of this folder's conftest

PLAIN = AttentionVariant(scale=0.125)
SLOPES = (0.7, 0.3, 0.1)
VARIANTS = {
    "plain": PLAIN,
    "window_of_itself": replace(PLAIN, window=1),
    "window_below_a_tile": replace(PLAIN, window=20),
    "window": replace(PLAIN, window=70),
    "window_over_the_context": replace(PLAIN, window=1000),
    "softcap": replace(PLAIN, softcap=0.5),
    "alibi": replace(PLAIN, alibi_slopes=SLOPES),
    "falcons_alibi": replace(PLAIN, alibi_slopes=SLOPES, alibi_in_bfloat16=True),
    "window_and_alibi": replace(PLAIN, window=33, alibi_slopes=SLOPES),
    "everything": AttentionVariant(0.3, 40, 0.8, SLOPES),
    "falcons_alibi_capped": AttentionVariant(0.3, None, 0.8, SLOPES, alibi_in_bfloat16=True),
}
BATCHES = {
    "one_token": [(0, 1)],
    "decode_ragged": [(2, 1), (31, 1), (63, 1), (64, 1), (130, 1)],
    "chunk_from_the_start": [(0, 63)],
    "chunk_behind_a_prefix": [(61, 9)],
    "mixed": [(5, 1), (90, 1), (0, 7), (33, 31)],
}
SHAPES = [(16, 1, 3, 80), (32, 2, 5, 96), (16, 1, 7, 64), (64, 2, 1, 64), (128, 1, 12, 128), (64, 1, 16, 256)]
DTYPES = (torch.float32, torch.float16)


def spelt(shape: tuple[int, int, int, int]) -> str:
    return "-".join(f"{letter}{number}" for letter, number in zip("BHGD", shape, strict=True))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_its_meaning(name: str, batch: str, make_step: MakeStep, assert_close: AssertClose) -> None:
    step = make_step((16, 1, 3, 32), BATCHES[batch])
    assert_close(step.compute(VARIANTS[name]), step.meaning(VARIANTS[name]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=spelt)
def test_heads_and_blocks_of_any_size_equal_their_meaning(
    shape: tuple[int, int, int, int], dtype: torch.dtype, make_step: MakeStep, assert_close: AssertClose
) -> None:
    step = make_step(shape, [(40, 1), (27, 9)], dtype)
    assert_close(step.compute(PLAIN), step.meaning(PLAIN))


@pytest.mark.parametrize("block_n", (16, 64, 128))
@pytest.mark.parametrize("block_size", (16, 32, 64, 128))
def test_tiles_of_keys_may_be_smaller_or_larger_than_blocks(
    block_n: int, block_size: int, make_step: MakeStep, assert_close: AssertClose
) -> None:
    step = make_step((block_size, 1, 2, 32), [(129, 1), (45, 33)])
    shape = AttentionShape(16, block_n, 4, 3, 128)
    assert_close(step.compute(PLAIN, step.planner(shape, shape)), step.meaning(PLAIN))


@pytest.mark.parametrize("name", ("plain", "window", "everything"))
def test_a_chunk_whose_splits_are_computed_side_by_side_equals_its_meaning(
    name: str, make_step: MakeStep, assert_close: AssertClose
) -> None:
    step = make_step((16, 1, 3, 32), [(0, 3), (120, 12)])
    planner = step.planner(enough_programs=1000)
    assert_close(step.compute(VARIANTS[name], planner), step.meaning(VARIANTS[name]))


def test_more_splits_than_are_combined_at_a_time_equal_their_meaning(
    make_step: MakeStep, assert_close: AssertClose
) -> None:
    step = make_step((16, 1, 2, 32), [(300, 1)])
    planner = step.planner(decode=AttentionShape(16, 16, 4, 3, 16))
    assert_close(step.compute(PLAIN, planner), step.meaning(PLAIN))


@pytest.mark.parametrize("enough_programs", (0, 1000), ids=("whole", "side_by_side"))
def test_stored_8_bit_keys_and_values_are_scaled(
    enough_programs: int, make_step: MakeStep, assert_close: AssertClose, device: torch.device
) -> None:
    step = make_step((16, 2, 2, 32), [(40, 1), (100, 1), (60, 9)])
    step = replace(step, kv=step.kv.to(torch.float8_e4m3fn))
    scales = torch.tensor([[0.5, 2.0], [3.0, 0.25]], device=device)
    planner = step.planner(enough_programs=enough_programs)
    assert_close(step.compute(PLAIN, planner, scales), step.meaning(PLAIN, scales))


@pytest.mark.parametrize("stored", (torch.float8_e4m3fn, torch.float8_e4m3fnuz), ids=str)
def test_stored_8_bit_keys_and_values_are_widened_for_the_queries(
    stored: torch.dtype,
    make_step: MakeStep,
    assert_close: AssertClose,
    require_fp8: Callable[[torch.dtype], None],
) -> None:
    require_fp8(stored)
    step = make_step((16, 2, 2, 32), [(40, 1), (60, 9)], torch.float16)
    step = replace(step, kv=step.kv.to(stored))
    assert_close(step.compute(PLAIN), step.meaning(PLAIN))


def test_equals_torchs_attention(make_step: MakeStep, assert_close: AssertClose) -> None:
    step = make_step((16, 2, 3, 32), [(0, 67)])
    kv = step.kv[:, step.tables[0].long()].transpose(1, 2).flatten(2, 3)[:, :, :67]
    k, v = kv.repeat_interleave(3, 1)
    meant = torch.nn.functional.scaled_dot_product_attention(
        step.q.transpose(0, 1), k, v, is_causal=True, scale=0.125
    )
    assert_close(step.compute(PLAIN), meant.transpose(0, 1).flatten(1))
