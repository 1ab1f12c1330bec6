"""What is done to logits before a draw, in Triton, against what it means: biases, words, penalties, what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import edited_rows as meant
from kernels.edited_rows import BIASED, HELD_BACK, IN_PROMPT, PENALIZED, EditedRows
from kernels.gpu.sampling.edit_logits import edit_logits
from kernels.gpu.sampling.forbid_words import forbid_words
from kernels.gpu.sampling.penalize import penalize, remember_drawn

AssertClose = Callable[[Tensor, Tensor], None]
SIZES = pytest.mark.parametrize("size", (7, 257, 2500), ids="V{}".format)
NUM_ROWS = 6
WORDS = {
    1: ((5,), (3, 4, 5), (4, 5), (5, 4, 5), (4, 6), (2, 3, 4, 0)),
    4: (*(((6, each % 7) * 2) for each in range(70)), (0, 1), (2, 1)),
}
NEWEST = {1: (2, 3, 4), 4: (1, 6, 2)}


def some_rows(size: int, device: torch.device) -> EditedRows:
    """One that asks for nothing, three with biases or penalties or both, and two with words."""
    words = {row: words_of(row).to(device) for row in WORDS}
    edits = EditedRows.empty(NUM_ROWS, size, words, device)
    edits.biases.copy_(torch.where(torch.rand(NUM_ROWS, size) < 0.3, -torch.inf, torch.randn(NUM_ROWS, size)))
    marks = torch.randint(0, 3, (NUM_ROWS, size))
    marks += IN_PROMPT * torch.randint(0, 2, marks.shape) + HELD_BACK * torch.randint(0, 2, marks.shape)
    edits.marks.copy_(marks)
    for row, wishes, held_until, penalties in (
        (1, BIASED, 10, (1.0, 0.0, 0.0)),
        (2, PENALIZED, 0, (1.7, 0.5, 0.25)),
        (3, BIASED | PENALIZED, 11, (0.6, -0.3, -1.0)),
        (5, 0, 2**31 - 1, (1.0, 0.0, 0.0)),
    ):
        edits.records[row, meant.WISHES] = wishes
        edits.records[row, meant.HELD_UNTIL] = held_until
        bits = torch.tensor(penalties).view(torch.int32).to(device)
        edits.records[row, meant.REPETITION : meant.PRESENCE + 1] = bits
    for row, each in words.items():
        edits.records[row, meant.NUM_WORDS] = len(WORDS[row])
        edits.records[row, meant.NUM_NEWEST] = len(NEWEST[row])
        edits.addresses[row] = each.data_ptr()
    return edits


def words_of(row: int) -> Tensor:
    lengths = torch.tensor([len(word) for word in WORDS[row]]).cumsum(0)
    return torch.tensor([*NEWEST[row], *lengths, *sum(WORDS[row], ())], dtype=torch.int32)


def some_batch(device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([3, -1, 1, 0, 2, 5, 4], dtype=torch.int32, device=device)
    return rows, torch.tensor([10, 10, 10, 0, 3, 2**31 - 2, 9], device=device)


def on_cpu(edits: EditedRows) -> EditedRows:
    words = {row: each.cpu().clone() for row, each in edits.words.items()}
    columns = (edits.records, edits.biases, edits.marks, edits.addresses)
    return EditedRows(*(each.cpu().clone() for each in columns), words)


@SIZES
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_biases_and_what_is_held_back_are_what_they_mean(
    size: int, dtype: torch.dtype, device: torch.device
) -> None:
    edits, (rows, positions) = some_rows(size, device), some_batch(device)
    wide = torch.randn(len(rows), size + 9).to(device, dtype)
    logits, expected = wide[:, :size], torch.empty(len(rows), size)
    before = logits.clone()
    logits[2, 0], edits.biases[1, 0] = torch.nan, -torch.inf
    edited = torch.full((len(rows), size), -77.0, device=device)
    edit_logits(logits, rows, positions, edits, edited)
    meant.edit_logits(logits.cpu(), rows.cpu(), positions.cpu(), on_cpu(edits), expected)
    assert torch.equal(edited.cpu().nan_to_num(5.0), expected.nan_to_num(5.0))
    assert torch.equal(logits[:, 1:], before[:, 1:]), "raw logits stay as they were"


def test_tokens_are_held_back_until_their_position(device: torch.device) -> None:
    edits = some_rows(9, device)
    edits.marks[5] = torch.tensor([HELD_BACK, 0, 1] * 3, device=device)
    edits.records[5, meant.HELD_UNTIL] = 12
    rows, edited = torch.full((2,), 5, dtype=torch.int32, device=device), torch.empty(2, 9, device=device)
    edit_logits(torch.zeros(2, 9, device=device), rows, torch.tensor([11, 12], device=device), edits, edited)
    assert edited.nonzero().tolist() == [[0, 0], [0, 3], [0, 6]] and edited.min() == meant.FORBIDDEN


def test_words_are_forbidden_where_they_have_begun(device: torch.device) -> None:
    """More of them than a program takes at a time, of several lengths, and some that end alike."""
    edits, (rows, _) = some_rows(7, device), some_batch(device)
    logits = torch.zeros(len(rows), 7, device=device)
    expected = logits.cpu().clone()
    forbid_words(logits, rows, edits)
    meant.forbid_words(expected, rows.cpu(), on_cpu(edits))
    assert torch.equal(logits.cpu(), expected)
    times = (expected / meant.FORBIDDEN).round()
    assert times[2].tolist() == [1, 0, 0, 0, 0, 3, 1] and times[6].tolist() == [0, 1, 0, 0, 0, 0, 0]


@SIZES
def test_penalties_are_what_they_mean(size: int, device: torch.device, assert_close: AssertClose) -> None:
    edits, (rows, _) = some_rows(size, device), some_batch(device)
    logits = torch.randn(len(rows), size)
    logits[:, 0] = -torch.inf
    expected, edited = logits.clone(), logits.clone().to(device)
    penalize(edited, rows, edits)
    meant.penalize(expected, rows.cpu(), on_cpu(edits))
    assert_close(edited.cpu(), expected)
    changed = [place for place in range(len(rows)) if not torch.equal(expected[place], logits[place])]
    assert changed == [0, 4] and torch.equal(edited[1].cpu(), logits[1])


def test_what_was_drawn_is_noted_for_the_rows_that_ask(device: torch.device) -> None:
    edits, (rows, _) = some_rows(257, device), some_batch(device)
    expected = on_cpu(edits)
    token_ids = torch.tensor([256, 1, 2, 3, 0, 5, 6], device=device)
    for _ in range(2):
        remember_drawn(token_ids, rows, edits)
        meant.remember_drawn(token_ids.cpu(), rows.cpu(), expected)
    assert torch.equal(edits.marks.cpu(), expected.marks)
    assert all(torch.equal(edits.words[row].cpu(), expected.words[row]) for row in WORDS)
    assert expected.words[1][:3].tolist() == [4, 2, 2] and expected.words[4][:3].tolist() == [2, 6, 6]


def test_lines_of_another_vocabulary_are_refused(device: torch.device) -> None:
    edits, (rows, positions) = some_rows(257, device), some_batch(device)
    logits = torch.zeros(len(rows), 257, device=device)
    narrow = replace(edits, marks=edits.marks[:, :200].contiguous())
    for edit in (
        lambda: penalize(logits, rows, narrow),
        lambda: edit_logits(logits, rows, positions, narrow, logits.clone()),
    ):
        with pytest.raises(AssertionError, match="marks is"):
            edit()
