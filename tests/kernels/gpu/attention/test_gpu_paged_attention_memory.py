"""What the kernel reads and writes: nothing beyond its rows, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention.combine import Partials
from kernels.gpu.attention.operator import DeviceLaunch, TritonAttentionPlan, TritonPagedAttention
from kernels.gpu.attention.plan import AttentionPlanner, QueryColumns

AssertClose = Callable[[torch.Tensor, torch.Tensor], None]
MakeStep = Any  # of this folder's conftest

PLAIN = AttentionVariant(scale=0.125)


def captured(step: Any, planner: AttentionPlanner, num_rows: int, max_keys: int) -> TritonAttentionPlan:
    """A launch for `num_rows` rows of `max_keys` keys, whose tiles an earlier step has left there."""
    earlier = [[1], [num_rows - 1], [1], [0], [100]]
    tiles = np.tile(np.array(earlier, np.int32), num_rows)
    (planned,) = planner.plan(QueryColumns.of(step.rows))
    planned.write(tiles)
    launch = DeviceLaunch(
        planner.decode_launch(num_rows, max_keys), torch.from_numpy(tiles).to(step.q.device)
    )
    return TritonAttentionPlan((launch,), step.tables)


def attention_of(step: Any, planner: AttentionPlanner) -> TritonPagedAttention:
    partials = Partials.allocate(planner.num_slots, *step.q.shape[1:], step.q.device)
    return TritonPagedAttention(PLAIN, planner, partials)


def test_a_captured_launch_writes_nothing_for_rows_that_it_has_too_many(
    make_step: MakeStep, assert_close: AssertClose
) -> None:
    step = make_step((16, 1, 2, 32), [(20, 1), (100, 1)])
    planner = step.planner()
    q = torch.cat([step.q, torch.randn_like(step.q)])  # a batch padded to 4 rows
    out = torch.full((4, 64), torch.nan, device=q.device)
    plan = replace(captured(step, planner, 4, 400), out=out)
    attention_of(step, planner).run(q, step.kv, plan)
    assert_close(out[:2], step.meaning(PLAIN))
    assert out[2:].isnan().all()


@pytest.mark.parametrize("batch", ([(100, 1)], [(90, 9)]), ids=str)
@pytest.mark.parametrize("block_size", (16, 64))
def test_blocks_before_the_window_are_not_read(
    block_size: int, batch: list[tuple[int, int]], make_step: MakeStep, assert_close: AssertClose
) -> None:
    variant = replace(PLAIN, window=20)
    step = make_step((block_size, 1, 2, 32), batch)
    meant = step.meaning(variant)
    step.tables[:, : variant.first_key(batch[0][0]) // block_size] = 0  # given back: the null block, NaN
    assert_close(step.compute(variant), meant)


def test_queries_may_be_a_part_of_what_a_projection_gave(
    make_step: MakeStep, assert_close: AssertClose
) -> None:
    step = make_step((16, 2, 2, 32), [(20, 1), (33, 8)])
    qkv = torch.full((9, 8, 32), torch.nan, device=step.q.device)
    qkv[:, :4] = step.q
    assert_close(replace(step, q=qkv[:, :4]).compute(PLAIN), step.meaning(PLAIN))


def test_blocks_may_lie_further_apart_than_32_bits_count(
    assert_close: AssertClose, make_step: MakeStep, device: torch.device
) -> None:
    step = make_step((16, 1, 2, 32), [(40, 1)])
    stride = (1 << 30) + 512  # of blocks: the second one starts beyond 2^31 elements
    pool = torch.empty(
        2 * stride + 4096, dtype=torch.float8_e4m3fn, device=device
    )  # only what is touched takes memory
    kv = pool.as_strided((2, 3, 1, 16, 32), (1024, stride, 512, 32, 1))
    kv.copy_(torch.randn(2, 3, 1, 16, 32))
    step = replace(step, kv=kv, tables=torch.tensor([[2, 1, 0]], dtype=torch.int32, device=device))
    assert_close(step.compute(PLAIN), step.meaning(PLAIN))
