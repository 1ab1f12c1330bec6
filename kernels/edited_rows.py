"""What rows wish done to their logits before a draw, as it lies on a device by row, and what that means in plain torch.

    held back    x -> x + FORBIDDEN      for marked tokens, before the position that they are held back until
    bias         x -> x + bias           -inf: a token that is not allowed
    words        x -> x + FORBIDDEN      for the last token of each word whose others have just come
    repetition   x -> x / s where x > 0, else x · s          for tokens of the prompt and generated ones
    frequency    x -> x - frequency · (how often it was generated)
    presence     x -> x - presence · (was it generated)

In this order. Rows are written when they start; a step brings nothing but the rows and positions of its batch. A row of
-1 is padding, and stays as it is. The kernels of `kernels/gpu/` that do the same look only at lines that are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.penalize import penalize_counts, penalize_repetition

# Added to forbidden tokens. No token that is allowed can be less likely; and if a request forbids every token that it
# allows, these are still numbers to choose by, which infinities are not, also when scaled by penalty and temperature.
FORBIDDEN = -1e28

# Places in a row's record. Numbers that are not whole are there by their bits.
WISHES = 0  # BIASED, PENALIZED
HELD_UNTIL = 1  # position; 0: nothing is held back
NUM_BEST = 2  # alternatives that it wants the log-probabilities of; -1: it does not even want the token's own
NUM_WORDS = 3
NUM_NEWEST = 4  # tokens of the longest word but its last: so many of those that were generated last matter
REPETITION = 5  # fp32, as the next two
FREQUENCY = 6
PRESENCE = 7
RECORD = 8  # numbers

BIASED = 1
PENALIZED = 2

# A mark counts how often its token was generated, beneath two flags.
HELD_BACK = 1 << 30
IN_PROMPT = 1 << 29
COUNTED = IN_PROMPT - 1

NOTHING_YET = -1  # in the place of tokens that are not generated yet: no word has it


@dataclass(frozen=True, slots=True)
class EditedRows:
    """Lines that a row's record does not ask for hold anything.

    Few rows have words, of any number and length: each such row has a piece of memory of its own [any] int32, which
    kernels find by its address:

        the NUM_NEWEST tokens generated last, the newest last | where each word ends | the words' tokens
    """

    records: Tensor  # [rows, RECORD] int32
    biases: Tensor  # [rows, vocabulary] fp32
    marks: Tensor  # [rows, vocabulary] int32
    addresses: Tensor  # [rows] int64, of `words`
    words: Mapping[int, Tensor]  # by row; to be kept for as long as a step may look there

    @classmethod
    def empty(
        cls, num_rows: int, vocab_size: int, words: Mapping[int, Tensor], device: torch.device | str
    ) -> EditedRows:
        """Rows without a wish."""
        records = torch.zeros(num_rows, RECORD, dtype=torch.int32, device=device)
        records[:, NUM_BEST] = -1
        return cls(
            records,
            torch.zeros(num_rows, vocab_size, device=device),
            torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=device),
            torch.zeros(num_rows, dtype=torch.int64, device=device),
            words,
        )

    def num_best(self, rows: Tensor) -> Tensor:  # [batch] int32 -> [batch] int32, -1: does not ask
        return self.records[:, NUM_BEST].index_select(0, rows.clamp(min=0)).masked_fill_(rows < 0, -1)


def edit_logits(
    logits: Tensor,  # [batch, vocabulary]
    rows: Tensor,  # [batch] int32
    positions: Tensor,  # [batch] int32 or int64, of the tokens to draw
    edits: EditedRows,
    out: Tensor,  # [batch, vocabulary] fp32, written: what is held back and biases
) -> None:
    out.copy_(logits)
    for place, row in _asking(rows):
        wishes, held_until = edits.records[row, [WISHES, HELD_UNTIL]].tolist()
        if positions[place] < held_until:
            out[place] += FORBIDDEN * (edits.marks[row] & HELD_BACK).bool()
        if wishes & BIASED:
            allowed = edits.biases[row] > -torch.inf
            out[place] = torch.where(allowed, out[place] + edits.biases[row], -torch.inf)


def forbid_words(
    logits: Tensor,  # [batch, vocabulary] fp32, written
    rows: Tensor,  # [batch] int32
    edits: EditedRows,
) -> None:
    for place, row in _asking(rows):
        num_words, num_newest = edits.records[row, [NUM_WORDS, NUM_NEWEST]].tolist()
        if num_words:
            newest, ends, tokens = edits.words[row].tensor_split([num_newest, num_newest + num_words])
            for *others, last in (word.tolist() for word in tokens.tensor_split(ends[:-1].cpu().long())):
                if newest[num_newest - len(others) :].tolist() == others:
                    logits[place, last] += FORBIDDEN


def penalize(
    logits: Tensor,  # [batch, vocabulary] fp32, written
    rows: Tensor,  # [batch] int32
    edits: EditedRows,
) -> None:
    for place, row in _asking(rows):
        if edits.records[row, WISHES] & PENALIZED:
            repetition, frequency, presence = edits.records[row].view(torch.float32)[
                REPETITION : PRESENCE + 1
            ]
            marks, edited = edits.marks[row][None], logits[place : place + 1]
            occurred = (marks & ~HELD_BACK) != 0
            penalize_repetition(edited, torch.where(occurred, repetition, 1.0))
            penalize_counts(edited, (marks & COUNTED).float(), frequency, presence)


def remember_drawn(
    token_ids: Tensor,  # [batch] int64
    rows: Tensor,  # [batch] int32
    edits: EditedRows,  # whose marks and newest tokens are written
) -> None:
    for place, row in _asking(rows):
        if edits.records[row, WISHES] & PENALIZED:
            edits.marks[row, token_ids[place]] += 1
        if edits.records[row, NUM_WORDS]:
            newest = edits.words[row][: edits.records[row, NUM_NEWEST]]
            newest.copy_(torch.cat([newest[1:], token_ids[place : place + 1].int()]))


def _asking(rows: Tensor) -> list[tuple[int, int]]:
    return [(place, row) for place, row in enumerate(rows.tolist()) if row >= 0]
