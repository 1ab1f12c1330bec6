"""How each row wants its tokens drawn, in columns: from `RowStart` to the row's end.

Columns lie on the host. Read by `sampling_batch.py` when the rows of a CPU's step change, and in every step by
`cuda/token_head.py` and `cuda/drawn_tokens.py`.
"""

from __future__ import annotations

import enum

import numpy as np

from protocol.tokens import TOKEN_BYTES
from workers.step_plan import RowStart


class Wish(enum.IntFlag):
    """What a row asks of the sampler beyond the most likely token."""

    RUNNING = 1  # the row is in use
    RANDOM = 2
    TEMPERATURE = 4  # one other than 1
    MIN_P = 8
    TOP_K = 16
    TOP_P = 32
    LOGPROBS = 64
    CUTS = MIN_P | TOP_K | TOP_P


class SamplingColumns:
    """One number a row. Values of a row that does not run are of no meaning."""

    def __init__(self, max_rows: int) -> None:
        self.wishes = np.zeros(max_rows, np.int64)
        self.temperature = np.ones(max_rows, np.float32)
        self.min_p = np.zeros(max_rows, np.float32)  # 0: off
        self.top_k = np.zeros(max_rows, np.int64)  # 0: off
        self.top_p = np.ones(max_rows, np.float64)  # 1: off
        self.seed = np.zeros(max_rows, np.int64)
        self.num_logprobs = np.zeros(max_rows, np.int64)  # alternatives beside the drawn token

    def start(self, start: RowStart, vocab_size: int) -> None:
        row, sampling = start.row, start.sampling
        top_k = sampling.top_k if sampling.top_k < vocab_size else 0
        self.temperature[row] = sampling.temperature
        self.min_p[row] = sampling.min_p
        self.top_k[row] = top_k
        self.top_p[row] = sampling.top_p
        self.seed[row] = (start.seed + 2**63) % 2**64 - 2**63
        self.num_logprobs[row] = min(sampling.logprobs or 0, vocab_size)
        self.wishes[row] = _wishes(start, top_k)

    def end(self, row: int) -> None:
        self.wishes[row] = 0


def num_prompt_tokens(start: RowStart) -> int:
    return len(start.prompt) // TOKEN_BYTES


def _wishes(start: RowStart, top_k: int) -> Wish:
    sampling = start.sampling
    wishes = Wish.RUNNING
    if sampling.logprobs is not None:
        wishes |= Wish.LOGPROBS
    if sampling.greedy:
        return wishes  # whatever cuts the distribution leaves its most likely token
    wishes |= Wish.RANDOM
    for asked, wish in (
        (sampling.temperature != 1.0, Wish.TEMPERATURE),
        (sampling.min_p > 0.0, Wish.MIN_P),
        (top_k > 0, Wish.TOP_K),
        (sampling.top_p < 1.0, Wish.TOP_P),
    ):
        if asked:
            wishes |= wish
    return wishes
