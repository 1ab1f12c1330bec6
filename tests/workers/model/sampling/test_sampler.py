"""What one step of the sampler draws, whatever its rows ask. Distributions are in `test_sampling_distributions.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.argmax import argmax
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.sampling import sampling_batch
from workers.model.sampling.sampler import Drawn, Sampler
from workers.step_plan import RowStart

VOCABULARY = 12
EOS = 2
PROMPT = (3, 4, 4)
LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.0, 2.3, -3.0, 0.7, 1.1, -0.6])  # best: 7, 2, 4, 10
MIXED = (
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=0.0, repetition_penalty=1.3),
    SamplingParams(top_k=5, temperature=1.5),
    SamplingParams(top_p=0.7),
    SamplingParams(min_p=0.2, presence_penalty=1.0),
    SamplingParams(top_p=0.9, top_k=7, logprobs=4),
    SamplingParams(temperature=0.6, frequency_penalty=0.5, repetition_penalty=0.8),
    SamplingParams(logit_bias={3: 2.0, 4: -1.0}, bad_word_ids=((7,), (4, 2))),
    SamplingParams(min_tokens=9, stop_token_ids=(7,), allowed_token_ids=(1, 2, 3, 7, 8, 9)),
)


def sampler_of(params: Sequence[SamplingParams], seeds: Sequence[int], **given: object) -> Sampler:
    """A row for each, in this order."""
    options = {"vocab_size": VOCABULARY, "generated": (), **given}
    sampler = Sampler(options["vocab_size"], (EOS,), len(params))
    for row, (each, seed) in enumerate(zip(params, seeds, strict=True)):
        sampler.start(RowStart(row, pack_tokens(PROMPT), pack_tokens(options["generated"]), each, seed))
    return sampler


def sample(
    params: SamplingParams | Sequence[SamplingParams],
    logits: Tensor = LOGITS,
    seeds: Sequence[int] = (0,),
    position: int = len(PROMPT),
    generated: Sequence[int] = (),
) -> Drawn:
    """One step of as many rows as there are seeds, all with these logits."""
    each = [params] * len(seeds) if isinstance(params, SamplingParams) else params
    sampler = sampler_of(each, seeds, vocab_size=len(logits), generated=generated)
    rows = np.arange(len(seeds))
    return sampler.sample(logits.expand(len(seeds), -1).clone(), rows, torch.full((len(seeds),), position))


def drawn_by(*args: object, **given: object) -> list[int]:
    return sample(*args, **given).token_ids.tolist()


class Operators(TorchDispatchMode):
    """Writes down what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_greedy_takes_the_most_likely_token() -> None:
    assert drawn_by(SamplingParams(temperature=0.0)) == [7]


def test_a_greedy_batch_is_an_argmax_and_nothing_else() -> None:
    """Whatever the rows' cuts say: they cannot change the most likely token."""
    params = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, top_p=0.1, top_k=3, min_p=0.5)]
    sampler = sampler_of(params, seeds=(0, 1))
    logits, rows, positions = LOGITS.expand(2, -1).clone(), np.arange(2), torch.tensor([3, 3])
    sampler.sample(logits, rows, positions)
    with Operators() as ran:
        sampler.sample(logits, rows, positions)
    with Operators() as wanted:
        argmax(logits)
    assert ran.names == wanted.names


@pytest.mark.parametrize("flatness", (1.0, 0.05), ids=("peaked", "flat"))
def test_a_draw_does_not_depend_on_the_rows_beside_it(flatness: float) -> None:
    """Alone and in batches of every order and company, with a vocabulary so wide that a last bit would show."""
    torch.manual_seed(0)
    logits = torch.randn(50257) * 4 * flatness
    num_rows = 3 * len(MIXED)
    together = drawn_of(range(num_rows), logits)
    for row in range(num_rows):
        assert drawn_of([row], logits) == [together[row]]
    for size in (2, 3, 7, 19, num_rows):
        rows = torch.randperm(num_rows)[:size].tolist()
        assert drawn_of(rows, logits) == [together[row] for row in rows]


def drawn_of(rows: Sequence[int], logits: Tensor) -> list[int]:
    """One step of some of many rows that have just started."""
    sampler = sampler_of(MIXED * 3, seeds=range(3 * len(MIXED)), vocab_size=len(logits))
    several = logits.expand(len(rows), -1).clone()
    return sampler.sample(several, np.array(rows), torch.full((len(rows),), 9)).token_ids.tolist()


def test_rows_drawn_in_several_parts_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    params, seeds = MIXED * 20, range(20 * len(MIXED))
    together = drawn_by(params, seeds=seeds)
    monkeypatch.setattr(sampling_batch, "_CACHED_BYTES", 4 * VOCABULARY * 7)
    assert drawn_by(params, seeds=seeds) == together


def test_a_draw_depends_on_seed_and_position() -> None:
    draws = {
        (seed, position): drawn_by(SamplingParams(), seeds=[seed], position=position)[0]
        for seed in (-(2**63), 0, 2**64 - 5)
        for position in range(3, 40)
    }
    by_seed = {seed: tuple(draws[seed, position] for position in range(3, 40)) for seed, _ in draws}
    assert len(set(by_seed.values())) == 3
    assert all(len(set(each)) > 4 for each in by_seed.values())


def test_a_bias_lifts_a_token_over_the_others() -> None:
    assert drawn_by(SamplingParams(temperature=0.0, logit_bias={8: 100.0})) == [8]


def test_a_bias_beyond_all_bounds_is_as_much_as_the_largest() -> None:
    assert drawn_by(SamplingParams(logit_bias={8: 1e300, 3: -1e300}), seeds=range(50)) == [8] * 50


def test_only_allowed_tokens_come() -> None:
    assert set(drawn_by(SamplingParams(allowed_token_ids=(0, 5, 8)), seeds=range(500))) == {0, 5, 8}


@pytest.mark.parametrize("temperature", (0.0, 1.0, 2.0))
def test_a_single_allowed_token_comes_whatever_else_is_asked(temperature: float) -> None:
    sampling = SamplingParams(
        temperature=temperature,
        allowed_token_ids=(8,),
        logit_bias={7: 100.0, 8: -100.0},
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=2.0,
    )
    assert drawn_by(sampling, seeds=range(20)) == [8] * 20


def test_a_bias_opens_no_token_that_is_not_allowed() -> None:
    sampling = SamplingParams(allowed_token_ids=(0, 5), logit_bias={7: 100.0})
    assert set(drawn_by(sampling, seeds=range(200))) == {0, 5}


@pytest.mark.parametrize(("num_generated", "expected"), [(0, 4), (1, 4), (2, 7)])
def test_end_and_stop_ids_wait_for_min_tokens(num_generated: int, expected: int) -> None:
    """7 is a stop id and 2 ends the sequence: before two tokens are there, 4 is the best left."""
    sampling = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(7, 7))
    assert drawn_by(sampling, position=len(PROMPT) + num_generated) == [expected]


def test_the_end_of_sequence_may_come_early_where_it_ends_nothing() -> None:
    assert drawn_by(
        SamplingParams(min_tokens=5, ignore_eos=True, allowed_token_ids=(EOS, 8), temperature=0.0)
    ) == [EOS]


def test_wishes_that_leave_no_token_leave_an_allowed_one() -> None:
    """Only 2 and 7 are allowed, 2 ends the sequence too early and 7 is a bad word."""
    sampling = SamplingParams(allowed_token_ids=(EOS, 7), min_tokens=3, bad_word_ids=((7,),), temperature=0.7)
    assert set(drawn_by(sampling, seeds=range(100))) == {EOS, 7}


def test_a_temperature_next_to_zero_is_as_good_as_greedy() -> None:
    for temperature in (0.0, 9e-6, 2e-5, 1e-3):
        assert set(drawn_by(SamplingParams(temperature=temperature), seeds=range(50))) == {7}


def test_a_top_k_beyond_the_vocabulary_is_none() -> None:
    assert drawn_by(SamplingParams(top_k=10**9), seeds=range(300)) == drawn_by(
        SamplingParams(), seeds=range(300)
    )


@pytest.mark.parametrize("cut", ({"top_k": 3}, {"top_p": 0.2}, {"min_p": 1.0}), ids=str)
def test_equal_logits_are_kept_or_cut_together(cut: dict[str, float]) -> None:
    drawn = drawn_by(SamplingParams(**cut), logits=torch.ones(VOCABULARY), seeds=range(500))
    assert set(drawn) == set(range(VOCABULARY))


@pytest.mark.parametrize("params", MIXED, ids=range(len(MIXED)))
def test_logits_in_bf16_draw_like_the_same_numbers_in_fp32(params: SamplingParams) -> None:
    logits = LOGITS.bfloat16()
    assert drawn_by(params, logits=logits, seeds=range(40)) == drawn_by(
        params, logits=logits.float(), seeds=range(40)
    )


def test_ids_beyond_the_vocabulary_spoil_nobodys_step() -> None:
    far = 10**6
    sampling = SamplingParams(
        temperature=0.0,
        logit_bias={far: 5.0, -1: 5.0},
        stop_token_ids=(far,),
        allowed_token_ids=(-1, far),
        bad_word_ids=((far,), (-1, 7), (3, far)),
        min_tokens=1,
        repetition_penalty=1.1,
    )
    assert drawn_by((sampling, SamplingParams(temperature=0.0)), seeds=(0, 1), generated=(far, 5)) == [7, 7]


@pytest.mark.parametrize("value", (-torch.inf, torch.nan))
@pytest.mark.parametrize("temperature", (0.0, 1.0))
def test_a_row_of_nonsense_still_gets_a_token(value: float, temperature: float) -> None:
    """It must not end the step for the others."""
    sampling = SamplingParams(
        temperature=temperature, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.1, logprobs=2
    )
    drawn = drawn_by(sampling, logits=torch.full((VOCABULARY,), value))
    assert 0 <= drawn[0] < VOCABULARY


def test_nothing_is_drawn_for_no_rows() -> None:
    drawn = sampler_of((), ()).sample(torch.empty(0, VOCABULARY), np.arange(0), torch.arange(0))
    assert drawn.token_ids.tolist() == []
