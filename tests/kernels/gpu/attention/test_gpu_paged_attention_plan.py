"""What steps come to as launches. Needs neither a GPU nor triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.attention_variant import QueryRow
from kernels.gpu.attention.plan import (
    TILE_NUMBERS,
    AttentionLaunch,
    AttentionPlanner,
    AttentionShape,
    PlannedLaunch,
    QueryColumns,
)
from kernels.gpu.attention.shapes import attention_shapes

DECODE = AttentionShape(16, 64, 4, 3, 512)
PREFILL = AttentionShape(128, 64, 8, 3, 2048)
PLANNER = AttentionPlanner(
    group=3, kv_heads=8, decode=DECODE, prefill=PREFILL, num_slots=100_000, enough_programs=256
)


def plan(planner: AttentionPlanner, *rows: tuple[int, int, int]) -> tuple[PlannedLaunch, ...]:
    """Of (row of the tables, start, queries)."""
    return planner.plan(QueryColumns.of([QueryRow(*row) for row in rows]))


def test_rows_that_decode_take_a_tile_each_in_their_order() -> None:
    (planned,) = plan(PLANNER, (4, 0, 1), (0, 511, 1), (9, 512, 1), (2, 5000, 1))
    assert planned.launch == AttentionLaunch(DECODE, 4, 1, 10, walked=False)
    rows, tokens, counts, slots, starts = planned.tiles.tolist()
    assert (rows, tokens, counts) == ([4, 0, 9, 2], [0, 1, 2, 3], [1, 1, 1, 1])
    assert starts == [0, 511, 512, 5000]
    assert slots == [0, 0, 0, 2]  # a row with one split needs none, the third has two


def test_chunks_are_cut_into_tiles_and_the_longest_comes_first() -> None:
    (planned,) = plan(PLANNER, (1, 0, 50), (3, 7, 84))
    rows, tokens, counts, _, starts = planned.tiles.tolist()
    assert rows == [3, 1, 3, 1]
    assert tokens == [92, 42, 50, 0]
    assert counts == [42, 8, 42, 42]  # 128 // 3 queries at most
    assert starts == [49, 42, 7, 0]


def test_a_mixed_step_takes_two_launches() -> None:
    decode, prefill = plan(PLANNER, (0, 9, 1), (1, 20, 1), (2, 0, 5))
    assert (decode.launch.shape, prefill.launch.shape) == (DECODE, PREFILL)
    assert (decode.launch.num_tiles, prefill.launch.num_tiles) == (2, 1)
    assert prefill.tiles[1].tolist() == [2]
    assert prefill.launch.max_queries == 5


def test_slots_of_different_tiles_do_not_overlap() -> None:
    (planned,) = plan(PLANNER, (0, 30_000, 100), (1, 4_000, 3), (2, 5, 60))
    _, _, counts, slots, starts = planned.tiles.astype(int)
    splits = (starts + counts - 1) // PREFILL.split_tokens + 1
    num_slots = np.where(splits > 1, counts * splits, 0)
    taken = np.concatenate([slot + np.arange(num) for slot, num in zip(slots, num_slots, strict=True)])
    assert np.array_equal(np.sort(taken), np.arange(num_slots.sum()))
    assert planned.launch.num_splits == 15


def test_a_long_prompt_is_not_split_since_it_keeps_the_device_busy() -> None:
    (planned,) = plan(PLANNER, (0, 0, 8192))
    assert planned.launch.num_splits == 1


def test_a_short_suffix_behind_a_long_prefix_is_split() -> None:
    (planned,) = plan(PLANNER, (0, 32_704, 64))
    assert planned.launch.num_splits == 16


@pytest.mark.parametrize("rows", ([(0, 9000, 1)], [(0, 9000, 64)]), ids=str)
def test_a_step_whose_partial_results_have_no_room_is_computed_without(
    rows: list[tuple[int, int, int]],
) -> None:
    (planned,) = plan(replace(PLANNER, num_slots=17), *rows)
    assert planned.launch.num_splits == 1


@pytest.mark.parametrize("prefill", (DECODE, PREFILL), ids=("one_shape", "two_shapes"))
def test_in_one_shape_splits_are_walked_wherever_they_are_not_side_by_side(prefill: AttentionShape) -> None:
    planner = replace(PLANNER, prefill=prefill)
    launches = [each.launch for each in plan(planner, (0, 9000, 1), (0, 0, 8192))]
    launches.append(planner.decode_launch(4, 1000))
    assert {launch.walked for launch in launches} == {prefill == DECODE}


def test_what_a_captured_launch_has_too_much_is_marked_empty() -> None:
    (planned,) = plan(PLANNER, (4, 10, 1), (0, 20, 1))
    tiles = np.full((TILE_NUMBERS, 4), 3, np.int32)
    planned.write(tiles)
    assert np.array_equal(tiles[:, :2], planned.tiles)
    assert (tiles[0, 2:] < 0).all()


def test_a_step_that_outgrows_a_captured_launch_is_refused() -> None:
    (planned,) = plan(PLANNER, (0, 1, 1), (1, 2, 1))
    with pytest.raises(AssertionError, match="2 tiles do not fit 1 columns"):
        planned.write(np.zeros((TILE_NUMBERS, 1), np.int32))


def test_more_heads_than_a_tile_has_rows_are_refused() -> None:
    with pytest.raises(AssertionError, match="17 heads share a KV head"):
        DECODE.queries_of_tile(17)


@pytest.mark.parametrize("deterministic", (False, True), ids=("two_shapes", "one_shape"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("head_dim", (64, 80, 128, 256))
@pytest.mark.parametrize("target", ("sm_80", "sm_90", "sm_100", "gfx942"))
def test_every_group_of_heads_fits_a_tile(
    target: str, head_dim: int, dtype: torch.dtype, deterministic: bool
) -> None:
    for group in (1, 3, 16, 17, 71, 128):
        shapes = attention_shapes(target, group, head_dim, dtype, deterministic)
        assert all(shape.queries_of_tile(group) >= 1 for shape in shapes)
        assert all(shape.block_m.bit_count() == 1 for shape in shapes)
        assert shapes[0] == shapes[1] or not deterministic
