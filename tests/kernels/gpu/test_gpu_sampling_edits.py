"""What is done to logits before a draw, in Triton: masks, lists of tokens, penalties, and a note of what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import penalize as meant
from kernels.gpu.edit_logits import add_to_logits, allow_tokens
from kernels.gpu.penalize import PenaltyRows, penalize, remember_drawn

AssertClose = Callable[[Tensor, Tensor], None]
SIZES = pytest.mark.parametrize("size", (7, 257, 2500), ids="V{}".format)
NO_LINE = -1


def numbers(*values: int, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def packed(allowed: Tensor) -> Tensor:  # [lines, vocabulary] bool -> [lines, words] int32
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32)).long().view(len(allowed), -1, 32)
    return (padded << torch.arange(32)).sum(-1).to(torch.int32)


def penalty_rows(size: int, device: torch.device) -> PenaltyRows:
    """Of a row with both, one with neither, one with counts only and one with scales only."""
    occurred = torch.rand(3, size) < 0.3
    return PenaltyRows(
        scale_lines=numbers(2, NO_LINE, NO_LINE, 0, device=device),
        scales=torch.where(occurred, torch.tensor([[1.7], [9.0], [0.6]]), 1.0).to(device),
        repetition=torch.tensor([0.6, 1.0, 1.0, 1.7], device=device),
        count_lines=numbers(1, NO_LINE, 0, NO_LINE, device=device),
        counts=torch.randint(0, 3, (3, size)).float().to(device),
        frequency=torch.tensor([0.5, 9.0, -0.3, 9.0], device=device),
        presence=torch.tensor([0.25, 9.0, -1.0, 9.0], device=device),
    )


@SIZES
def test_masks_leave_only_what_they_allow(size: int, device: torch.device) -> None:
    logits, allowed = torch.randn(3, size), torch.rand(2, size) < 0.4
    expected = logits.clone()
    expected[0].masked_fill_(~allowed[1], -torch.inf)
    expected[2].masked_fill_(~allowed[0], -torch.inf)
    edited = logits.clone().to(device)
    allow_tokens(edited, numbers(1, NO_LINE, 0, device=device), packed(allowed).to(device))
    assert torch.equal(edited.cpu(), expected)


def test_lists_are_added_where_they_say(device: torch.device) -> None:
    """The second row has none, the third more than a program takes at once."""
    ids = [3, 256, *range(256, -1, -1)]
    values = torch.arange(len(ids)).float()
    logits = torch.randn(3, 257)
    edited = logits.clone().to(device)
    begins = numbers(0, 2, 2, len(ids) - 1, device=device)  # the last entry is nobody's
    add_to_logits(edited, begins, numbers(*ids, device=device), values.to(device))
    expected = logits.clone()
    expected[0, ids[:2]] += values[:2]
    expected[2, ids[2:-1]] += values[2:-1]
    assert torch.equal(edited.cpu(), expected)


def test_an_entry_counts_until_its_position(device: torch.device) -> None:
    edited = torch.zeros(2, 9, device=device)
    add_to_logits(
        edited,
        numbers(0, 2, 4, device=device),
        numbers(1, 2, 1, 2, device=device),
        torch.ones(4, device=device),
        until=torch.tensor([10, 11, 2**40, 5], device=device),
        positions=torch.tensor([10, 5], device=device),
    )
    assert edited.nonzero().tolist() == [[0, 2], [1, 1]]


@SIZES
def test_penalties_change_logits_as_they_do_on_a_cpu(
    size: int, device: torch.device, assert_close: AssertClose
) -> None:
    rows, logits = penalty_rows(size, device), torch.randn(4, size)
    logits[:, 0] = -torch.inf
    expected, counts = logits.clone(), rows.counts.cpu()
    for row, line in ((0, 2), (3, 0)):
        meant.penalize_repetition(expected[row : row + 1], rows.scales.cpu()[line : line + 1])
    for row, line in ((0, 1), (2, 0)):
        frequency, presence = (each.cpu()[row].view(1, 1) for each in (rows.frequency, rows.presence))
        meant.penalize_counts(expected[row : row + 1], counts[line : line + 1].clone(), frequency, presence)
    edited = logits.clone().to(device)
    penalize(edited, rows)
    assert torch.equal(edited[1].cpu(), logits[1]), "a row without penalties keeps its bits"
    assert_close(edited.cpu(), expected)


def test_what_was_drawn_is_noted_in_the_lines_of_its_row(device: torch.device) -> None:
    rows = penalty_rows(257, device)
    scales, counts = rows.scales.clone(), rows.counts.clone()
    remember_drawn(torch.tensor([5, 6, 256, 5], device=device), rows)
    scales[2, 5], scales[0, 5] = 0.6, 1.7
    counts[1, 5] += 1
    counts[0, 256] += 1
    assert torch.equal(rows.scales, scales) and torch.equal(rows.counts, counts)


def test_a_matrix_of_another_vocabulary_is_refused(device: torch.device) -> None:
    rows = penalty_rows(257, device)
    with pytest.raises(AssertionError):
        penalize(torch.zeros(4, 257, device=device), replace(rows, counts=rows.counts[:, :200].contiguous()))
