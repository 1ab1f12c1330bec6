"""What the sampler draws: against exact distributions and formulas, with fixed seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.sampler import Sampler
from workers.step_plan import RowStart, SampledTokens

VOCABULARY = 12
EOS = 2
PROMPT = (3, 4, 4)
LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.0, 2.3, -3.0, 0.7, 1.1, -0.6])
NUM_DRAWS = 20_000
CHI_SQUARE_AT_ONE_IN_TEN_THOUSAND = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9, 11: 37.4}


def sample(
    sampling: SamplingParams | Sequence[SamplingParams],
    logits: Tensor = LOGITS,
    seeds: Sequence[int] = (0,),
    position: int = len(PROMPT),
    generated: Sequence[int] = (),
) -> SampledTokens:
    """One step of as many rows as there are seeds."""
    params = [sampling] * len(seeds) if isinstance(sampling, SamplingParams) else sampling
    sampler = Sampler(VOCABULARY, (EOS,))
    for row, (seed, each) in enumerate(zip(seeds, params, strict=True)):
        sampler.start(RowStart(row, pack_tokens(PROMPT), pack_tokens(generated), each, seed))
    rows = range(len(seeds))
    return sampler.sample(logits.expand(len(rows), -1).clone(), rows, [position] * len(rows))


def assert_drawn_like(expected: Tensor, sampling: SamplingParams) -> None:
    """Chi-square of many seeds' draws against the exact probabilities; what has none must never come."""
    counts = Counter(sample(sampling, seeds=range(NUM_DRAWS)).token_ids)
    possible = [token for token in range(VOCABULARY) if expected[token] > 0]
    assert set(counts) <= set(possible)
    wanted = [float(expected[token]) * NUM_DRAWS for token in possible]
    statistic = sum((counts[token] - each) ** 2 / each for token, each in zip(possible, wanted, strict=True))
    assert statistic < CHI_SQUARE_AT_ONE_IN_TEN_THOUSAND[len(possible) - 1]


def kept_only(tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
    mask = torch.full((VOCABULARY,), -torch.inf).index_fill_(0, torch.tensor(tokens), 0.0)
    return (LOGITS / temperature + mask).softmax(-1)


def test_greedy_takes_the_most_likely_token() -> None:
    assert sample(SamplingParams(temperature=0.0)).token_ids == (7,)


@pytest.mark.parametrize("temperature", (0.5, 1.0, 1.7))
def test_draws_follow_the_softmax(temperature: float) -> None:
    expected = (LOGITS.double() / temperature).softmax(-1)
    assert_drawn_like(expected, SamplingParams(temperature=temperature))


def test_top_k_keeps_the_k_most_likely() -> None:
    assert_drawn_like(kept_only([7, 2, 4]), SamplingParams(top_k=3))


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass() -> None:
    order = LOGITS.argsort(descending=True)
    mass = LOGITS.softmax(-1)[order].cumsum(-1)
    num_kept = int((mass < 0.8).sum()) + 1
    assert_drawn_like(kept_only(order[:num_kept].tolist()), SamplingParams(top_p=0.8))


def test_min_p_keeps_what_is_not_much_less_likely_than_the_best() -> None:
    probabilities = (LOGITS / 1.3).softmax(-1)
    kept = [token for token in range(VOCABULARY) if probabilities[token] >= 0.3 * probabilities.max()]
    assert_drawn_like(kept_only(kept, 1.3), SamplingParams(min_p=0.3, temperature=1.3))


def test_top_p_counts_the_mass_of_what_top_k_left() -> None:
    assert_drawn_like(kept_only([7, 2]), SamplingParams(top_k=3, top_p=0.7))


def test_top_p_of_a_flat_wide_vocabulary_needs_more_than_the_first_candidates() -> None:
    from kernels.sample import filter_logits

    logits = torch.linspace(0.0, 0.1, 5000)[None]
    kept = filter_logits(
        logits.clone(), torch.tensor([0]), torch.tensor([0.9]), torch.tensor([0.0])
    ).isfinite()
    mass = logits.softmax(-1)[kept].sum()
    assert 0.9 <= float(mass) < 0.9005


def test_draws_reach_every_part_of_a_wide_vocabulary_and_only_what_is_possible() -> None:
    from kernels.sample import draw

    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [0, 255, 256, 700, 999]] = torch.tensor([0.1, 0.2, 0.2, 0.1, 0.4]).log()
    uniforms = torch.cat(
        [(torch.arange(2000).double() + 0.5) / 2000, torch.tensor([1 - 2.0**-48], dtype=torch.float64)]
    )
    counts = Counter(draw(logits.expand(len(uniforms), -1), uniforms).tolist())
    assert counts == {0: 200, 255: 400, 256: 400, 700: 200, 999: 801}


def test_a_draw_does_not_depend_on_the_rows_beside_it() -> None:
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_k=5, temperature=1.5),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2, presence_penalty=1.0),
        SamplingParams(top_p=0.9, top_k=7, logprobs=4),
    ]
    for first_seed in range(50):
        seeds = range(first_seed, first_seed + len(params))
        together = sample(params, seeds=seeds).token_ids
        alone = [sample(each, seeds=[seed]).token_ids[0] for each, seed in zip(params, seeds, strict=True)]
        assert list(together) == alone


def test_a_draw_depends_on_seed_and_position() -> None:
    draws = {
        (seed, position): sample(SamplingParams(), seeds=[seed], position=position).token_ids
        for seed in (-(2**63), 0, 2**64 - 5)
        for position in range(3, 40)
    }
    by_seed = {seed: [draws[seed, position] for position in range(3, 40)] for seed, _ in draws}
    assert len({tuple(each) for each in by_seed.values()}) == 3
    assert all(len(set(each)) > 4 for each in by_seed.values())


@pytest.mark.parametrize(
    "penalties",
    (
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6, "presence_penalty": -0.5, "frequency_penalty": 0.4},
    ),
)
def test_penalties_follow_their_formulas(penalties: dict[str, Any]) -> None:
    generated = (7, 7, 1, 10)
    expected = LOGITS.clone()
    for token in range(VOCABULARY):
        count = generated.count(token)
        if token in (*PROMPT, *generated):
            repetition = penalties.get("repetition_penalty", 1.0)
            expected[token] *= 1 / repetition if expected[token] > 0 else repetition
        expected[token] -= penalties.get("frequency_penalty", 0.0) * count
        expected[token] -= penalties.get("presence_penalty", 0.0) * (count > 0)
    counts = Counter(
        sample(SamplingParams(**penalties), seeds=range(4000), generated=generated, position=7).token_ids
    )
    drawn = torch.tensor([counts[token] / 4000 for token in range(VOCABULARY)])
    torch.testing.assert_close(drawn, expected.softmax(-1), rtol=0.0, atol=0.03)


def test_penalties_count_what_the_sampler_drew_itself() -> None:
    sampler = Sampler(VOCABULARY, (EOS,))
    sampling = SamplingParams(temperature=0.0, presence_penalty=2.0)
    sampler.start(RowStart(0, pack_tokens(PROMPT), b"", sampling, 0))
    drawn = [sampler.sample(LOGITS[None].clone(), [0], [3 + step]).token_ids[0] for step in range(3)]
    assert drawn == [7, 2, 4]


def test_a_bias_lifts_a_token_over_the_others() -> None:
    assert sample(SamplingParams(temperature=0.0, logit_bias=((8, 100.0),))).token_ids == (8,)


def test_only_allowed_tokens_come() -> None:
    assert_drawn_like(kept_only([0, 5, 8]), SamplingParams(allowed_token_ids=(0, 5, 8)))


@pytest.mark.parametrize(("num_generated", "expected"), [(0, 4), (1, 4), (2, 7)])
def test_end_and_stop_ids_wait_for_min_tokens(num_generated: int, expected: int) -> None:
    """7 is a stop id and 2 ends the sequence: before two tokens are there, 4 is the best left."""
    sampling = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(7,))
    assert sample(sampling, position=len(PROMPT) + num_generated).token_ids == (expected,)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    sampling = SamplingParams(temperature=0.5, logprobs=3, presence_penalty=1.0, logit_bias=((8, 100.0),))
    (logprob,) = sample(sampling).logprobs
    raw = LOGITS.log_softmax(-1)
    assert logprob is not None
    assert logprob.rank == VOCABULARY
    assert logprob.logprob == pytest.approx(float(raw[8]))
    assert [token for token, _ in logprob.top] == [7, 2, 4]
    assert [value for _, value in logprob.top] == pytest.approx(raw[[7, 2, 4]].tolist())


def test_rows_get_as_many_logprobs_as_each_asked_for() -> None:
    asked = (None, 0, 2, 20)
    params = [SamplingParams(temperature=0.0, logprobs=each) for each in asked]
    found = sample(params, seeds=range(len(params))).logprobs
    assert [None if each is None else len(each.top) for each in found] == [None, 0, 2, VOCABULARY]


def test_ids_beyond_the_vocabulary_spoil_nobodys_step() -> None:
    sampling = SamplingParams(
        temperature=0.0, logit_bias=((10**6, 5.0), (-1, 5.0)), stop_token_ids=(10**6,), min_tokens=1
    )
    assert sample(sampling).token_ids == (7,)


def test_a_row_that_ended_leaves_nothing() -> None:
    sampler = Sampler(VOCABULARY, (EOS,))
    sampler.start(RowStart(0, pack_tokens(PROMPT), b"", SamplingParams(), 0))
    sampler.end(0)
    with pytest.raises(KeyError):
        sampler.sample(LOGITS[None].clone(), [0], [3])


@pytest.mark.parametrize("value", (-torch.inf, torch.nan))
def test_a_row_with_no_possible_token_still_gets_one(value: float) -> None:
    """Nonsense in one row must not end the step for the others."""
    drawn = sample(SamplingParams(top_p=0.9, top_k=3), logits=torch.full((VOCABULARY,), value)).token_ids
    assert 0 <= drawn[0] < VOCABULARY
