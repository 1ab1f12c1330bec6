"""Draw kernels with the scratch that they need, made once for a runner: behind one door all that a step does between
logits and tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.edited_rows import EditedRows
from kernels.gpu.sampling.argmax import best_pairs, best_tokens, num_splits, split_pairs
from kernels.gpu.sampling.edit_logits import edit_logits
from kernels.gpu.sampling.forbid_words import forbid_words
from kernels.gpu.sampling.log_probabilities import ScoringScratch, log_probabilities
from kernels.gpu.sampling.penalize import penalize, remember_drawn
from kernels.gpu.sampling.sample import SamplingScratch, sample
from kernels.gpu.sampling.weights import SamplingRows
from kernels.log_probabilities import MAX_SCORED_TOKENS


class TokenDraw:
    """For one stream: its scratch is written by every call."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._scratch = SamplingScratch.of(max_rows, vocab_size, device)
        self._scoring = ScoringScratch.of(max(max_rows, MAX_SCORED_TOKENS), vocab_size, device)

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

    def draw_edited(
        self,
        logits: Tensor,  # [batch, vocabulary], not changed
        sampling: SamplingRows,  # in the batch's order
        rows: Tensor,  # [batch] int32, -1: padding
        edits: EditedRows,  # by row; its marks and newest tokens are written
        out: Tensor,  # [batch] int64, written
        scores: Tensor,  # [batch, NUM_SCORES] int32, written for rows that ask
    ) -> None:
        """A row that wants no edit draws what `draw` draws for it. Scores are of the raw logits."""
        edited = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        edit_logits(logits, rows, sampling.position, edits, edited)
        forbid_words(edited, rows, edits)
        penalize(edited, rows, edits)
        sample(edited, sampling, self._scratch, out)
        remember_drawn(out, rows, edits)
        self.score(logits, out, edits.num_best(rows), scores)

    def score(
        self,
        logits: Tensor,  # [tokens, vocabulary]
        token_ids: Tensor,  # [tokens] int64
        num_best: Tensor,  # [tokens] int32, -1: not this one
        out: Tensor,  # [tokens, NUM_SCORES] int32, written
    ) -> None:
        """At most MAX_SCORED_TOKENS, or as many as rows are drawn for."""
        log_probabilities(logits, token_ids, num_best, self._scoring, out)
