"""Masks, penalties and cuts against transformers' logits processors: the same scores, the same tokens left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.cut import Cuts, cut
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.sampling.sampler import Sampler
from workers.step_plan import RowStart

VOCABULARY = 997
PROMPT = (5, 17, 17, 400)
GENERATED = (9, 17, 30, 9)


@pytest.fixture(scope="module")
def processors() -> Any:
    from transformers.generation import logits_process

    return logits_process


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(40, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3


def our_greedy(logits: Tensor, sampling: SamplingParams) -> list[int]:
    sampler = Sampler(VOCABULARY, (2,), len(logits))
    for row in range(len(logits)):
        sampler.start(RowStart(row, pack_tokens(PROMPT), pack_tokens(GENERATED), sampling, 0))
    rows = np.arange(len(logits))
    positions = torch.full((len(logits),), len(PROMPT) + len(GENERATED))
    return sampler.sample(logits.clone(), rows, positions).token_ids.tolist()


def their_greedy(logits: Tensor, tokens: Sequence[int], *chain: Callable[..., Tensor]) -> list[int]:
    scores = logits.clone()
    for process in chain:
        scores = process(torch.tensor(tokens).expand(len(logits), -1), scores)
    return scores.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", (1.3, 5.0))
def test_repetition_is_penalized_alike(processors: Any, logits: Tensor, penalty: float) -> None:
    logits[:, [5, 9, 30]] += 8.0
    theirs = processors.RepetitionPenaltyLogitsProcessor(penalty)
    ours = our_greedy(logits, SamplingParams(temperature=0.0, repetition_penalty=penalty))
    assert ours == their_greedy(logits, (*PROMPT, *GENERATED), theirs)
    assert ours != their_greedy(logits, (*PROMPT, *GENERATED))


def test_bad_words_are_forbidden_alike(processors: Any, logits: Tensor) -> None:
    words = [[7], [9, 8], [30, 9, 100], [17, 9, 101], [30, 9, 102, 103]]
    logits[:, [7, 8, 100, 101, 103]] += torch.tensor([12.0, 11.0, 10.0, 9.0, 8.0])
    theirs = processors.NoBadWordsLogitsProcessor(words, eos_token_id=2)
    ours = our_greedy(logits, SamplingParams(temperature=0.0, bad_word_ids=words))
    assert ours == their_greedy(logits, GENERATED, theirs)
    assert set(ours) & {101, 103}


def test_biases_and_penalties_come_in_the_same_order(processors: Any, logits: Tensor) -> None:
    theirs = (
        processors.SequenceBiasLogitsProcessor([[[9], 7.5], [[17], 7.0], [[30], -4.0]]),
        processors.RepetitionPenaltyLogitsProcessor(1.7),
    )
    sampling = SamplingParams(temperature=0.0, logit_bias={9: 7.5, 17: 7.0, 30: -4.0}, repetition_penalty=1.7)
    assert our_greedy(logits, sampling) == their_greedy(logits, (*PROMPT, *GENERATED), *theirs)


@pytest.mark.parametrize("top_k", (1, 50, 996))
def test_top_k_leaves_the_same_tokens(processors: Any, logits: Tensor, top_k: int) -> None:
    cuts = Cuts(top_k=torch.full((40, 1), top_k), widest_top_k=top_k)
    assert_same_tokens(logits, cuts, processors.TopKLogitsWarper(top_k))


@pytest.mark.parametrize("top_p", (0.01, 0.5, 0.9, 0.999))
def test_top_p_leaves_the_same_tokens(processors: Any, logits: Tensor, top_p: float) -> None:
    cuts = Cuts(top_p=torch.full((40, 1), top_p, dtype=torch.float64))
    assert_same_tokens(logits, cuts, processors.TopPLogitsWarper(top_p))


@pytest.mark.parametrize("min_p", (0.001, 0.1, 1.0))
def test_min_p_leaves_the_same_tokens(processors: Any, logits: Tensor, min_p: float) -> None:
    cuts = Cuts(min_p=torch.full((40, 1), min_p))
    assert_same_tokens(logits, cuts, processors.MinPLogitsWarper(min_p))


def test_top_k_then_top_p_leave_the_same_tokens(processors: Any, logits: Tensor) -> None:
    cuts = Cuts(
        top_k=torch.full((40, 1), 20), widest_top_k=20, top_p=torch.full((40, 1), 0.8, dtype=torch.float64)
    )
    assert_same_tokens(logits, cuts, processors.TopKLogitsWarper(20), processors.TopPLogitsWarper(0.8))


def assert_same_tokens(logits: Tensor, cuts: Cuts, *chain: Callable[..., Tensor]) -> None:
    scores = logits
    for process in chain:
        scores = process(None, scores)
    probabilities = logits.softmax(-1)
    cut(probabilities, cuts)
    assert torch.equal(probabilities > 0, scores.isfinite())
