"""Draws the next token of every row of a step in one pass, greedy and random rows mixed.

    raw logprobs -> allowed ids, min_tokens, logit bias -> penalties -> temperature -> min-p, top-k, top-p -> draw

What a row draws depends on its logits, its seed and the token's position: never on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.counter_random import uniform
from kernels.sample import draw, filter_logits
from protocol.messages import TokenLogprob
from workers.model.sampling_state import RowSampling
from workers.step_plan import RowStart, SampledTokens


class Sampler:
    """Keeps the sampling state of rows between `start` and `end`."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._rows: dict[int, RowSampling] = {}

    def start(self, start: RowStart) -> None:
        self._rows[start.row] = RowSampling.start(start, self._vocab_size, self._eos_token_ids)

    def end(self, row: int) -> None:
        self._rows.pop(row, None)

    def sample(
        self,
        logits: Tensor,  # [samples, vocabulary], consumed
        rows: Sequence[int],
        positions: Sequence[int],  # of the tokens to draw
    ) -> SampledTokens:
        states = [self._rows[row] for row in rows]
        logits = logits.float()
        asking = [index for index, state in enumerate(states) if state.sampling.logprobs is not None]
        raw = logits[asking].log_softmax(-1) if asking else None
        for index, state in enumerate(states):
            if state.shapes_logits:
                _shape(logits[index], state, positions[index] - state.num_prompt_tokens)
        drawn = _draw(logits, states, positions)
        token_ids = drawn.tolist()
        for state, token_id in zip(states, token_ids, strict=True):
            if state.counts is not None:
                state.counts[token_id] += 1
        logprobs: list[TokenLogprob | None] = [None] * len(states)
        if raw is not None:
            widths = [states[index].sampling.logprobs or 0 for index in asking]
            for index, logprob in zip(asking, _logprobs(raw, drawn[asking], widths), strict=True):
                logprobs[index] = logprob
        return SampledTokens(tuple(token_ids), tuple(logprobs))


def _shape(logits: Tensor, state: RowSampling, num_generated: int) -> None:
    """Masks, bias and penalties of one row [vocabulary], in place."""
    if state.allowed is not None:
        kept = logits[state.allowed]
        logits.fill_(-torch.inf).index_copy_(0, state.allowed, kept)
    if state.held_back is not None and num_generated < state.sampling.min_tokens:
        logits[state.held_back] = -torch.inf
    if state.biased is not None and state.bias is not None:
        logits.index_add_(0, state.biased, state.bias)
    if state.counts is not None and state.in_prompt is not None:
        _penalize(logits, state.counts, state.in_prompt, state)


def _penalize(logits: Tensor, counts: Tensor, in_prompt: Tensor, state: RowSampling) -> None:
    """Repetition scales what occurred anywhere; frequency and presence lower what was generated."""
    sampling = state.sampling
    generated = counts > 0
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits.copy_(torch.where(generated | in_prompt, scaled, logits))
    logits.sub_(counts, alpha=sampling.frequency_penalty)
    logits.sub_(generated.float(), alpha=sampling.presence_penalty)


def _draw(
    logits: Tensor, states: Sequence[RowSampling], positions: Sequence[int]
) -> Tensor:  # [samples] int64
    random = [index for index, state in enumerate(states) if not state.sampling.greedy]
    if len(random) == len(states):
        return _draw_random(logits, states, positions)
    chosen = logits.argmax(-1)
    if random:
        drawing, at = [states[index] for index in random], [positions[index] for index in random]
        chosen[random] = _draw_random(logits[random], drawing, at)
    return chosen


def _draw_random(logits: Tensor, states: Sequence[RowSampling], positions: Sequence[int]) -> Tensor:
    samplings = [state.sampling for state in states]
    logits.div_(torch.tensor([[each.temperature] for each in samplings]))
    if any(each.top_k or each.top_p < 1.0 or each.min_p for each in samplings):
        filter_logits(
            logits,
            torch.tensor([each.top_k for each in samplings]),
            torch.tensor([each.top_p for each in samplings]),
            torch.tensor([each.min_p for each in samplings]),
        )
    return draw(
        logits, uniform(torch.tensor([state.seed for state in states]), torch.tensor(list(positions)))
    )


def _logprobs(raw: Tensor, drawn: Tensor, widths: Sequence[int]) -> list[TokenLogprob]:
    """Of raw log-probabilities [rows, vocabulary]: the drawn token's own, its rank, and the best alternatives."""
    own = raw.gather(1, drawn[:, None])
    ranks = ((raw > own).sum(-1) + 1).tolist()
    best = raw.topk(min(max(widths), raw.shape[-1]))
    values, ids = best.values.tolist(), best.indices.tolist()
    return [
        TokenLogprob(logprob, rank, tuple(zip(ids[index][:width], values[index][:width], strict=True)))
        for index, (logprob, rank, width) in enumerate(
            zip(own.flatten().tolist(), ranks, widths, strict=True)
        )
    ]
