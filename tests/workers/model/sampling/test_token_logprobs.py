"""Logprobs of drawn tokens and of prompts: raw, ranked, and as many as each row asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.sampling.sampler import Drawn, Sampler
from workers.step_plan import RowStart

VOCABULARY = 12
LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.0, 2.3, -3.0, 0.7, 1.1, -0.6])  # best: 7, 2, 4, 10


def sample(params: Sequence[SamplingParams]) -> Drawn:
    sampler = Sampler(VOCABULARY, (2,), len(params))
    for row, sampling in enumerate(params):
        sampler.start(RowStart(row, pack_tokens([3, 4]), b"", sampling, row))
    positions = torch.full((len(params),), 2)
    return sampler.sample(LOGITS.expand(len(params), -1).clone(), np.arange(len(params)), positions)


def score(logits: torch.Tensor, tokens: Sequence[int], num_best: int) -> tuple[TokenLogprob, ...]:
    return Sampler(logits.shape[-1], (2,), 1).score(logits, torch.tensor(tokens), num_best)


@pytest.mark.parametrize("temperature", (0.0, 0.5))
def test_logprobs_are_those_of_the_raw_logits(temperature: float) -> None:
    """Whatever mask, bias, penalty or cut chose the token."""
    sampling = SamplingParams(
        temperature=temperature,
        logprobs=3,
        presence_penalty=1.0,
        allowed_token_ids=(8,),
        logit_bias={7: -5.0},
        top_k=1,
    )
    logprob = sample([sampling]).logprobs[0]
    raw = LOGITS.log_softmax(-1)
    assert logprob.rank == VOCABULARY
    assert logprob.logprob == pytest.approx(float(raw[8]))
    assert [token for token, _ in logprob.top] == [7, 2, 4]
    assert [value for _, value in logprob.top] == pytest.approx(raw[[7, 2, 4]].tolist())


def test_rows_get_as_many_logprobs_as_each_asked_for() -> None:
    asked = (None, 0, 2, 20, None)
    found = sample([SamplingParams(temperature=0.0, logprobs=each) for each in asked]).logprobs
    assert {place: len(each.top) for place, each in found.items()} == {1: 0, 2: 2, 3: VOCABULARY}
    assert found[1] == TokenLogprob(pytest.approx(float(LOGITS.log_softmax(-1)[7])), 1, ())


def test_logprobs_are_by_place_among_rows_that_did_not_ask() -> None:
    """Penalties and random draws consume the logits; raw ones are kept before."""
    params = [
        SamplingParams(presence_penalty=1.0),
        SamplingParams(temperature=0.7, logprobs=1, repetition_penalty=2.0),
        SamplingParams(),
        SamplingParams(temperature=0.3, logprobs=1, top_p=0.9),
    ]
    drawn = sample(params)
    raw = LOGITS.log_softmax(-1)
    assert list(drawn.logprobs) == [1, 3]
    for place, entry in drawn.logprobs.items():
        assert entry.logprob == pytest.approx(float(raw[drawn.token_ids[place]]))
        assert entry.top == ((7, pytest.approx(float(raw[7]))),)


def test_a_rank_counts_the_tokens_that_are_more_likely() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0]])
    ranks = [score(logits, [token], 0)[0].rank for token in range(5)]
    assert ranks == [4, 1, 1, 5, 3]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_scores_equal_those_of_log_softmax(dtype: torch.dtype) -> None:
    """Over more tokens than are scored at a time."""
    torch.manual_seed(0)
    logits = (torch.randn(301, 8009) * 3).to(dtype)
    tokens = torch.randint(8009, (301,))
    raw = logits.float().log_softmax(-1)
    found = score(logits, tokens.tolist(), 5)
    best = raw.topk(5)
    assert [each.logprob for each in found] == raw.gather(1, tokens[:, None]).flatten().tolist()
    assert [[value for _, value in each.top] for each in found] == best.values.tolist()
    assert all(raw[row, token] == value for row, each in enumerate(found) for token, value in each.top)
    assert [each.rank for each in found] == ((raw > raw.gather(1, tokens[:, None])).sum(-1) + 1).tolist()


def test_scoring_nothing_gives_nothing() -> None:
    assert score(torch.empty(0, VOCABULARY), [], 3) == ()


def test_scoring_leaves_the_logits_as_they_were() -> None:
    logits = LOGITS[None].clone()
    score(logits, [1], 3)
    assert torch.equal(logits[0], LOGITS)


def test_a_greedy_token_is_of_rank_one_and_leads_its_alternatives() -> None:
    entry = sample([SamplingParams(temperature=0.0, logprobs=1)]).logprobs[0]
    assert entry.rank == 1
    assert entry.top == ((7, entry.logprob),)
