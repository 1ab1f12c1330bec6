"""What a row that starts wishes done to its logits, in the numbers that `kernels/edited_rows.py` keeps on the device.

Made on the host by `device_sampler.py`. It knows no device, and means what the CPU's passes do: `logit_edits.py`,
`bad_words.py` and `penalties.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np

from kernels.edited_rows import (
    BIASED,
    FREQUENCY,
    HELD_BACK,
    HELD_UNTIL,
    IN_PROMPT,
    NUM_BEST,
    NUM_NEWEST,
    NUM_WORDS,
    PENALIZED,
    PRESENCE,
    RECORD,
    REPETITION,
    WISHES,
)
from protocol.sampling import SamplingParams
from workers.model.sampling.bad_words import newest_of, words_of
from workers.model.sampling.logit_edits import RowEdits, edits_of
from workers.model.sampling.penalties import known_tokens
from workers.model.sampling.places import Numbers
from workers.step_plan import RowStart

_MOST_POSITION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LineEntries:
    """Of a line as wide as the vocabulary."""

    filling: float  # what all other tokens have
    tokens: Numbers  # [n] int64, each once
    values: Numbers  # [n]


@dataclass(frozen=True, slots=True)
class StartedRow:
    record: Numbers  # [RECORD] int32
    biases: LineEntries | None
    marks: LineEntries | None
    words: Numbers | None  # [any] int32

    @classmethod
    def blank(cls) -> StartedRow:
        """Of a row that wishes nothing."""
        record = np.zeros(RECORD, np.int32)
        record[NUM_BEST] = -1
        return cls(record, None, None, None)

    @classmethod
    def of(cls, start: RowStart, vocab_size: int, eos_token_ids: tuple[int, ...]) -> StartedRow:
        sampling, edits = start.sampling, edits_of(start, vocab_size, eos_token_ids)
        words = words_of(sampling, vocab_size)
        num_newest = max(map(len, words), default=1) - 1
        is_biased = len(edits.allowed) or len(edits.added)
        is_penalized = _is_penalized(sampling)
        record = cls.blank().record
        record[WISHES] = (BIASED if is_biased else 0) | (PENALIZED if is_penalized else 0)
        record[HELD_UNTIL] = min(edits.held_until, _MOST_POSITION) if len(edits.held_back) else 0
        if sampling.logprobs is not None:
            record[NUM_BEST] = min(sampling.logprobs, vocab_size)
        record[NUM_WORDS], record[NUM_NEWEST] = len(words), num_newest
        record.view(np.float32)[[REPETITION, FREQUENCY, PRESENCE]] = (
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        return cls(
            record,
            _biases(edits) if is_biased else None,
            _marks(start, edits, vocab_size) if is_penalized or len(edits.held_back) else None,
            _packed(words, start.generated, num_newest) if words else None,
        )


def is_edited(sampling: SamplingParams) -> bool:
    """Its logits change before the draw, or somebody wants to see them."""
    return bool(
        sampling.logprobs is not None
        or sampling.allowed_token_ids
        or sampling.logit_bias
        or sampling.bad_word_ids
        or sampling.min_tokens > 0
        or _is_penalized(sampling)
    )


def _is_penalized(sampling: SamplingParams) -> bool:
    counts = sampling.frequency_penalty or sampling.presence_penalty
    return bool(counts) or sampling.repetition_penalty != 1.0


def _biases(edits: RowEdits) -> LineEntries:
    if not len(edits.allowed):
        return LineEntries(0.0, edits.added, edits.values)
    added = dict(zip(edits.added.tolist(), edits.values.tolist(), strict=True))
    values = [added.get(token, 0.0) for token in edits.allowed.tolist()]
    return LineEntries(-np.inf, edits.allowed, np.array(values, np.float32))


def _marks(start: RowStart, edits: RowEdits, vocab_size: int) -> LineEntries:
    sampling, parts = start.sampling, [(edits.held_back, HELD_BACK)]
    if _is_penalized(sampling):
        parts.append((known_tokens(start.generated, vocab_size), 1))  # each as often as it comes
    if sampling.repetition_penalty != 1.0:
        parts.append((np.unique(known_tokens(start.prompt, vocab_size)), IN_PROMPT))
    found, places = np.unique(np.concatenate([tokens for tokens, _ in parts]), return_inverse=True)
    values = np.zeros(len(found), np.int32)
    np.add.at(
        values, places, np.concatenate([np.full(len(tokens), mark, np.int32) for tokens, mark in parts])
    )
    return LineEntries(0.0, found, values)


def _packed(words: list[tuple[int, ...]], generated: bytes, num_newest: int) -> Numbers:
    """Newest tokens, ends, tokens."""
    newest = newest_of(generated, num_newest)
    return np.array([*newest, *accumulate(map(len, words)), *chain.from_iterable(words)], np.int32)
