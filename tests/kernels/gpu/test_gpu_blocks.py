"""What keeps the pool and the step's inputs on the device: block copies, resident tables, tokens to feed."""

from __future__ import annotations

import pytest
import torch

from kernels import apply_deltas as meant_deltas
from kernels import keep_newest as meant
from kernels.gpu.apply_deltas import apply_deltas
from kernels.gpu.copy_blocks import copy_blocks
from kernels.gpu.sampling.keep_newest import keep_newest

DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float8_e4m3fn), ids=str)


@DTYPES
@pytest.mark.parametrize("num_pairs", (0, 1, 5, 16, 17))
def test_a_copied_blocks_source_may_be_another_pairs_destination(
    num_pairs: int, dtype: torch.dtype, device: torch.device
) -> None:
    kv = torch.randn(2, 20, 3, 5, 28).to(device, dtype)
    before = kv.float().clone()
    sources = torch.arange(1, 1 + num_pairs, device=device)
    copy_blocks(kv, sources, sources + 1)  # 1 to 2, 2 to 3, and so on
    expected = before.clone()
    expected[:, 2 : 2 + num_pairs] = before[:, 1 : 1 + num_pairs]
    assert torch.equal(kv.float(), expected)


@pytest.mark.parametrize("num_deltas", (0, 1, 129))
def test_deltas_reach_their_places_and_padding_none(num_deltas: int, device: torch.device) -> None:
    places = torch.randperm(9 * 31)[:num_deltas]
    deltas = torch.stack([places // 31, places % 31, torch.arange(num_deltas) + 100]).int()
    deltas[0, 1::3] = -1
    padded = torch.cat([deltas, torch.full((3, 4), -1, dtype=torch.int32)], 1).to(device)
    tables = [torch.zeros(9, 40, dtype=torch.int32, device=device)[:, :31] for _ in range(2)]
    apply_deltas(tables[0], padded[:, :num_deltas])
    meant_deltas.apply_deltas(tables[1], padded[:, :num_deltas])
    assert torch.equal(*tables)


@pytest.mark.parametrize("keep", (keep_newest, meant.keep_newest), ids=("kernel", "meaning"))
def test_drawn_tokens_are_kept_by_their_rows(keep: object, device: torch.device) -> None:
    newest = torch.tensor([1, 2, 3, 4], device=device)
    rows = torch.tensor([3, -1, 0], dtype=torch.int32, device=device)
    assert callable(keep)
    keep(torch.tensor([30, 40, 50], device=device), rows, newest)
    assert newest.tolist() == [50, 2, 3, 30]
