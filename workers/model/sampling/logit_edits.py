"""Tokens that a request allows, forbids or favours one by one: allowed ids, bias, one-token bad words, and the ids
that may not end a sequence before `min_tokens`.

Each row keeps short lists of ids. Those of a step's rows are joined into flat lists over the whole batch once, and
every step applies them in a few operations, however many rows they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.edited_rows import FORBIDDEN
from workers.model.sampling.places import Numbers
from workers.model.sampling.sampling_state import num_prompt_tokens
from workers.step_plan import RowStart

_MOST_BIAS = 100.0
_NO_IDS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class RowEdits:
    allowed: Numbers  # [n] int64, no other id may come; empty: any may
    added: Numbers  # [n] int64, ids whose logits change
    values: Numbers  # [n] fp32, by so much
    held_back: Numbers  # [n] int64, ids forbidden before the position `held_until`
    held_until: int


def edits_of(start: RowStart, vocab_size: int, eos_token_ids: tuple[int, ...]) -> RowEdits:
    """Ids beyond the vocabulary are dropped: admission refuses them, and no row may spoil the step."""

    def known(ids: Iterable[int]) -> list[int]:  # each once
        return [token for token in dict.fromkeys(ids) if 0 <= token < vocab_size]

    sampling = start.sampling
    added = dict.fromkeys(known(word[0] for word in sampling.bad_word_ids if len(word) == 1), FORBIDDEN)
    for token, bias in sampling.logit_bias:
        added.setdefault(token, min(max(bias, -_MOST_BIAS), _MOST_BIAS))
    ids, ends = known(added), () if sampling.ignore_eos else eos_token_ids
    held_back = known((*sampling.stop_token_ids, *ends)) if sampling.min_tokens else ()
    return RowEdits(
        allowed=np.array(known(sampling.allowed_token_ids), np.int64),
        added=np.array(ids, np.int64),
        values=np.array([added[token] for token in ids], np.float32),
        held_back=np.array(held_back, np.int64),
        held_until=num_prompt_tokens(start) + sampling.min_tokens,
    )


@dataclass(frozen=True, slots=True)
class EditPass:
    """Lists of places in the flattened logits of one batch of rows."""

    restricted: Tensor  # [rows with allowed ids] int64
    allowed: Tensor  # [n] int64
    added: Tensor  # [n] int64
    values: Tensor  # [n] fp32
    held_back: Tensor  # [n] int64
    held_rows: Tensor  # [n] int64
    held_until: Tensor  # [n] int64

    def apply(self, logits: Tensor, positions: Tensor) -> None:
        flat = logits.view(-1)
        if len(self.restricted):
            kept = flat.index_select(0, self.allowed)
            logits.index_fill_(0, self.restricted, -torch.inf)
            flat.index_copy_(0, self.allowed, kept)
        if len(self.held_back):
            early = positions.index_select(0, self.held_rows) < self.held_until
            flat.index_add_(0, self.held_back, early.to(flat.dtype).mul_(FORBIDDEN))
        if len(self.added):
            flat.index_add_(0, self.added, self.values)

    def remember(self, drawn: Tensor) -> None:
        """Nothing depends on what is drawn."""


class LogitEdits:
    """The lists of rows between their start and their end."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._rows: dict[int, RowEdits] = {}

    def start(self, start: RowStart) -> None:
        edits = edits_of(start, self._vocab_size, self._eos_token_ids)
        if len(edits.allowed) or len(edits.added) or len(edits.held_back):
            self._rows[start.row] = edits

    def end(self, row: int) -> None:
        self._rows.pop(row, None)

    def batch(self, rows: Sequence[int]) -> list[EditPass]:
        """None or one."""
        found = [(place, self._rows[row]) for place, row in enumerate(rows) if row in self._rows]
        if not found:
            return []
        begins = [(place * self._vocab_size, edits) for place, edits in found]
        held = [(place, edits) for place, edits in found if len(edits.held_back)]
        edits = EditPass(
            restricted=_joined([np.array([place]) for place, edits in found if len(edits.allowed)]),
            allowed=_joined([begin + edits.allowed for begin, edits in begins]),
            added=_joined([begin + edits.added for begin, edits in begins]),
            values=_joined([edits.values for _, edits in found]),
            held_back=_joined([begin + edits.held_back for begin, edits in begins]),
            held_rows=_joined([np.full(len(edits.held_back), place) for place, edits in held]),
            held_until=_joined([np.full(len(edits.held_back), edits.held_until) for _, edits in held]),
        )
        return [edits]


def _joined(parts: list[Numbers]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else _NO_IDS)
