"""What keeps the pool and the step's inputs on the device: block copies, resident tables, the next step's inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import apply_deltas as meant_deltas
from kernels import gather_next as meant
from kernels.gather_next import DecodeInputs, DecodeState
from kernels.gpu.apply_deltas import apply_deltas
from kernels.gpu.copy_blocks import copy_blocks
from kernels.gpu.gather_next import gather_next, keep_newest

DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float8_e4m3fn), ids=str)
BLOCK_SIZE = 16


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


def some_state(num_rows: int, device: torch.device) -> DecodeState:
    return DecodeState(
        newest_tokens=torch.randint(1, 1000, (num_rows,)).to(device),
        positions=torch.randint(0, 4 * BLOCK_SIZE - 1, (num_rows,), dtype=torch.int32).to(device),
        block_tables=torch.randint(1, 1 << 30, (num_rows, 4), dtype=torch.int32).to(device),
    )


def poisoned_inputs(batch: int, device: torch.device) -> DecodeInputs:
    return DecodeInputs(*(torch.full((batch,), -99, device=device) for _ in range(3)))


def columns(inputs: DecodeInputs) -> Tensor:
    return torch.stack([inputs.token_ids, inputs.positions, inputs.slots])


@pytest.mark.parametrize("batch", (1, 7, 130))
def test_the_next_inputs_are_what_they_mean(batch: int, device: torch.device) -> None:
    state = some_state(150, device)
    same = replace(state, positions=state.positions.clone())
    rows = torch.randperm(150)[:batch].int().to(device)
    rows[1::5] = -1
    found, meaning = poisoned_inputs(batch, device), poisoned_inputs(batch, device)
    gather_next(rows, state, BLOCK_SIZE, found)
    meant.gather_next(rows, same, BLOCK_SIZE, meaning)
    assert torch.equal(columns(found), columns(meaning))
    assert torch.equal(state.positions, same.positions)


def test_positions_grow_from_block_to_block_by_themselves(device: torch.device) -> None:
    state = DecodeState(
        newest_tokens=torch.tensor([5, 6], device=device),
        positions=torch.tensor([0, BLOCK_SIZE - 2], dtype=torch.int32, device=device),
        block_tables=torch.tensor([[1, 2], [3, 4]], dtype=torch.int32, device=device),
    )
    rows, seen = torch.tensor([-1, 1], dtype=torch.int32, device=device), []
    for _ in range(3):
        inputs = poisoned_inputs(2, device)
        gather_next(rows, state, BLOCK_SIZE, inputs)
        seen.append(columns(inputs).tolist())
    assert seen == [
        [[0, 6], [0, 15], [-1, 3 * BLOCK_SIZE + 15]],
        [[0, 6], [0, 16], [-1, 4 * BLOCK_SIZE]],
        [[0, 6], [0, 17], [-1, 4 * BLOCK_SIZE + 1]],
    ]
    assert state.positions.tolist() == [0, BLOCK_SIZE + 1]


@pytest.mark.parametrize("gather", (gather_next, meant.gather_next), ids=("kernel", "meaning"))
@pytest.mark.parametrize("position", (BLOCK_SIZE - 1, 2 * BLOCK_SIZE - 1), ids=("null-block", "table-end"))
def test_a_row_without_a_block_writes_nothing(position: int, gather: object, device: torch.device) -> None:
    state = DecodeState(
        newest_tokens=torch.tensor([5, 6], device=device),
        positions=torch.tensor([position, 0], dtype=torch.int32, device=device),
        block_tables=torch.tensor([[1, 0], [3, 4]], dtype=torch.int32, device=device),
    )
    inputs = poisoned_inputs(1, device)
    assert callable(gather)
    gather(torch.tensor([0], dtype=torch.int32, device=device), state, BLOCK_SIZE, inputs)
    assert columns(inputs).flatten().tolist() == [5, position + 1, -1]


@pytest.mark.parametrize("keep", (keep_newest, meant.keep_newest), ids=("kernel", "meaning"))
def test_drawn_tokens_are_kept_by_their_rows(keep: object, device: torch.device) -> None:
    newest = torch.tensor([1, 2, 3, 4], device=device)
    rows = torch.tensor([3, -1, 0], dtype=torch.int32, device=device)
    assert callable(keep)
    keep(torch.tensor([30, 40, 50], device=device), rows, newest)
    assert newest.tolist() == [50, 2, 3, 30]
