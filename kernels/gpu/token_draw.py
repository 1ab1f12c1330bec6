"""A draw kernel with the scratch that it needs, made once for a runner: `argmax.py` and `sample.py` behind one door."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.argmax import best_pairs, best_tokens, num_splits, split_pairs
from kernels.gpu.sample import SamplingScratch, sample
from kernels.gpu.sample_weights import SamplingRows


class TokenDraw:
    """For one stream: its scratch is written by every call."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._scratch = SamplingScratch.of(max_rows, vocab_size, device)

    def most_likely(self, logits: Tensor, out: Tensor) -> None:  # [rows, vocabulary]; [rows] int64, written
        best_tokens(split_pairs(logits, self._scratch.pairs), out)

    def best_pairs(self, part: Tensor, first_id: int, out: Tensor) -> None:
        """Of one rank's tokens of the vocabulary, [rows, tokens] from `first_id` on. `out`: [rows] int64, written."""
        pairs = out.new_empty(len(part), num_splits(part.shape[1]))
        best_pairs(split_pairs(part, pairs, first_id), out)

    def best_of_ranks(self, pairs: Tensor, out: Tensor) -> None:  # [ranks, rows] int64; [rows] int64, written
        best_tokens(pairs.t(), out)

    def draw(
        self, logits: Tensor, rows: SamplingRows, out: Tensor
    ) -> None:  # [rows, vocabulary]; [rows] int64
        sample(logits, rows, self._scratch, out)
