"""Words of several tokens that must not be generated: the last token is forbidden where the others have just come.

The newest tokens of the rows that ask are kept and move up with every step. Words of one token are `logit_edits.py`'s.

                  newest tokens of a row       7  4  9         (width: the longest beginning of any row's words)
                  word 4 9 2: beginning        any 4  9        matches, so 2 is forbidden
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.edited_rows import FORBIDDEN, NOTHING_YET
from protocol.sampling import SamplingParams
from workers.model.sampling.places import Numbers, Places, at_places, take
from workers.model.sampling.row_matrix import RowMatrix
from workers.step_plan import RowStart

_ANY = -2  # in front of a beginning that is shorter than the width


def words_of(sampling: SamplingParams, vocab_size: int) -> list[tuple[int, ...]]:
    """Of several tokens, each once; those with a token that is not in the vocabulary cannot come."""
    return [
        word
        for word in dict.fromkeys(sampling.bad_word_ids)
        if len(word) > 1 and all(0 <= token < vocab_size for token in word)
    ]


def newest_of(generated: bytes, width: int) -> Numbers:
    """The tokens that were generated last: [width] int64, the newest last, NOTHING_YET in front of the first."""
    newest = np.full(width, NOTHING_YET, np.int64)
    known = np.frombuffer(generated, "<i4")[-width:]
    newest[width - len(known) :] = known
    return newest


@dataclass(frozen=True, slots=True)
class BadWordPass:
    places: Places  # of the rows with words
    newest: RowMatrix  # [lines, width] int64, the newest token last
    lines: Tensor  # [rows] int64
    word_lines: Tensor  # [words] int64
    beginnings: Tensor  # [words, width] int64
    any_token: Tensor  # [words, width] bool
    last: Tensor  # [words] int64, the words' last tokens in the flattened logits

    def apply(self, logits: Tensor, positions: Tensor) -> None:
        newest = self.newest.lines.index_select(0, self.word_lines)
        begun = ((newest == self.beginnings) | self.any_token).all(-1)
        logits.view(-1).index_add_(0, self.last, begun.to(logits.dtype).mul_(FORBIDDEN))

    def remember(self, drawn: Tensor) -> None:
        newest = self.newest.lines.index_select(0, self.lines)[:, 1:]
        moved = torch.cat([newest, take(drawn, self.places)[:, None]], 1)
        self.newest.lines.index_copy_(0, self.lines, moved)


class BadWords:
    """The words of rows between their start and their end, and the tokens that those generated last."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: dict[int, list[tuple[int, ...]]] = {}
        self._newest = RowMatrix(0, torch.int64)

    def start(self, start: RowStart) -> None:
        words = words_of(start.sampling, self._vocab_size)
        if not words:
            return
        self._widen(max(map(len, words)) - 1)
        width = self._newest.lines.shape[1]
        self._newest.take(start.row).copy_(torch.from_numpy(newest_of(start.generated, width)))
        self._rows[start.row] = words

    def end(self, row: int) -> None:
        if self._rows.pop(row, None) is not None:
            self._newest.give_back(row)

    def batch(self, rows: Sequence[int]) -> list[BadWordPass]:
        """None or one."""
        places = [place for place, row in enumerate(rows) if row in self._rows]
        if not places:
            return []
        words = [(place, word) for place in places for word in self._rows[rows[place]]]
        width = self._newest.lines.shape[1]
        beginnings = torch.tensor([[_ANY] * (width - len(word) + 1) + [*word[:-1]] for _, word in words])
        edits = BadWordPass(
            places=at_places(np.array(places)),
            newest=self._newest,
            lines=self._newest.lines_of([rows[place] for place in places]),
            word_lines=self._newest.lines_of([rows[place] for place, _ in words]),
            beginnings=beginnings,
            any_token=beginnings == _ANY,
            last=torch.tensor([place * self._vocab_size + word[-1] for place, word in words]),
        )
        return [edits]

    def _widen(self, width: int) -> None:
        """Room for longer beginnings. What rows generated before matters to none of their own words."""
        missing = width - self._newest.lines.shape[1]
        if missing > 0:
            self._newest.widen_left(missing, NOTHING_YET)
