"""Chi-square of what the whole sampler draws, over many seeds, against distributions computed the plain way.

Seeds are fixed, so a result never changes by chance; and wrong distributions are shown to be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.sampling.sampler import Sampler
from workers.step_plan import RowStart

VOCABULARY = 601
PROMPT = (5, 17, 17, 400)
NUM_ROWS, NUM_STEPS = 250, 80
ONE_IN_TEN_THOUSAND = 3.719  # of a normal distribution's upper tail
LEAST_EXPECTED = 5.0  # draws in a bin, for the chi-square to hold


def logits() -> Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)) * 2


def draw(sampling: SamplingParams, generated: Sequence[int] = ()) -> Tensor:
    """Tokens [steps, rows]: each row of each step is a request of its own, at its own position."""
    sampler = Sampler(VOCABULARY, (2,), NUM_ROWS)
    rows = np.arange(NUM_ROWS)
    drawn = []
    for step in range(NUM_STEPS):
        for row in range(NUM_ROWS):
            start = RowStart(
                row, pack_tokens(PROMPT), pack_tokens(generated), sampling, step * NUM_ROWS + row
            )
            sampler.start(start)
        positions = torch.full((NUM_ROWS,), len(PROMPT) + len(generated) + step)
        drawn.append(sampler.sample(logits().expand(NUM_ROWS, -1).clone(), rows, positions).token_ids)
    return torch.stack(drawn)


def exact(sampling: SamplingParams, generated: Sequence[int] = ()) -> list[float]:
    """One token at a time, in double precision."""
    scores = logits().double().tolist()
    for token in range(VOCABULARY):
        count, penalty = list(generated).count(token), sampling.repetition_penalty
        if token in (*PROMPT, *generated):
            scores[token] *= 1 / penalty if scores[token] > 0 else penalty
        scores[token] -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
    weights = [math.exp((score - max(scores)) / sampling.temperature) for score in scores]
    order = sorted(range(VOCABULARY), key=lambda token: -weights[token])
    order = [token for token in order if weights[token] >= sampling.min_p * max(weights)]
    order = order[: sampling.top_k or None]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if mass < sampling.top_p * total:
            kept.append(token)
            mass += weights[token]
    return [weights[token] / mass if token in set(kept) else 0.0 for token in range(VOCABULARY)]


def chi_square_limit(degrees: int) -> float:
    """Wilson's and Hilferty's approximation of the value that one true distribution in ten thousand passes."""
    share = 2 / (9 * degrees)
    return degrees * (1 - share + ONE_IN_TEN_THOUSAND * math.sqrt(share)) ** 3


def follows(drawn: Tensor, probabilities: Sequence[float]) -> bool:
    counts = torch.bincount(drawn.flatten(), minlength=len(probabilities)).tolist()
    if any(count and not probability for count, probability in zip(counts, probabilities, strict=True)):
        return False
    bins, rest_count, rest_expected = [], 0.0, 0.0
    for count, probability in zip(counts, probabilities, strict=True):
        expected = probability * drawn.numel()
        if expected >= LEAST_EXPECTED:
            bins.append((count, expected))
        else:
            rest_count, rest_expected = rest_count + count, rest_expected + expected
    if rest_expected >= LEAST_EXPECTED:
        bins.append((rest_count, rest_expected))
    statistic = sum((count - expected) ** 2 / expected for count, expected in bins)
    return len(bins) == 1 or statistic < chi_square_limit(len(bins) - 1)


CASES = {
    "plain": SamplingParams(),
    "cold": SamplingParams(temperature=0.3),
    "hot": SamplingParams(temperature=1.9),
    "one of one": SamplingParams(top_k=1),
    "top-k": SamplingParams(top_k=7),
    "wide top-k": SamplingParams(top_k=300, temperature=1.5),
    "top-p": SamplingParams(top_p=0.5),
    "wide top-p": SamplingParams(top_p=0.98, temperature=2.0),
    "tiny top-p": SamplingParams(top_p=1e-9),
    "min-p": SamplingParams(min_p=0.02),
    "top-k, then top-p": SamplingParams(top_k=20, top_p=0.8),
    "min-p, then top-p": SamplingParams(min_p=0.1, top_p=0.7, temperature=1.3),
    "all three": SamplingParams(min_p=0.05, top_k=12, top_p=0.9, temperature=0.8),
}


@pytest.mark.parametrize("sampling", CASES.values(), ids=CASES)
def test_draws_follow_the_exact_distribution(sampling: SamplingParams) -> None:
    assert follows(draw(sampling), exact(sampling))


@pytest.mark.parametrize(
    "sampling",
    (
        SamplingParams(presence_penalty=1.5),
        SamplingParams(frequency_penalty=-0.8, temperature=0.7),
        SamplingParams(repetition_penalty=1.6),
        SamplingParams(repetition_penalty=0.7, presence_penalty=-0.5, frequency_penalty=0.4, top_p=0.9),
    ),
    ids=("presence", "frequency", "repetition", "all with top-p"),
)
def test_draws_follow_the_penalized_distribution(sampling: SamplingParams) -> None:
    likely = sorted(range(VOCABULARY), key=lambda token: -float(logits()[token]))[:4]
    generated = [likely[0], likely[0], likely[2], likely[3], likely[0]]
    unpenalized = replace(sampling, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0)
    drawn = draw(sampling, generated)
    assert follows(drawn, exact(sampling, generated))
    assert not follows(drawn, exact(unpenalized, generated))


@pytest.mark.parametrize(
    ("sampling", "wrong"),
    (
        (SamplingParams(), SamplingParams(temperature=1.1)),
        (SamplingParams(top_k=7), SamplingParams(top_k=8)),
        (SamplingParams(top_k=8), SamplingParams(top_k=7)),
        (SamplingParams(top_p=0.5), SamplingParams(top_p=0.55)),
        (SamplingParams(min_p=0.02), SamplingParams(min_p=0.03)),
    ),
    ids=("temperature", "narrow top-k", "wide top-k", "top-p", "min-p"),
)
def test_the_chi_square_tells_a_slightly_wrong_distribution(
    sampling: SamplingParams, wrong: SamplingParams
) -> None:
    assert not follows(draw(sampling), exact(wrong))


def test_neighbouring_positions_of_one_seed_are_independent() -> None:
    """Pairs of tokens that follow each other, against the product of their distributions."""
    sampling = SamplingParams(top_k=6)
    sampler = Sampler(VOCABULARY, (2,), NUM_ROWS)
    for row in range(NUM_ROWS):
        sampler.start(RowStart(row, pack_tokens(PROMPT), b"", sampling, row))
    rows = np.arange(NUM_ROWS)
    steps = [
        sampler.sample(
            logits().expand(NUM_ROWS, -1).clone(), rows, torch.full((NUM_ROWS,), 4 + step)
        ).token_ids
        for step in range(NUM_STEPS)
    ]
    tokens = torch.stack(steps)
    pairs = tokens[0::2] * VOCABULARY + tokens[1::2]
    single = exact(sampling)
    assert follows(pairs, [first * second for first in single for second in single])
