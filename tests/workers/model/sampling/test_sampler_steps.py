"""What the sampler remembers from step to step: penalties, bad words, rows that end, start and are used again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.sampling.row_matrix import RowMatrix
from workers.model.sampling.sampler import Sampler
from workers.step_plan import RowStart

VOCABULARY = 12
PROMPT = (3, 4, 4)
LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.0, 2.3, -3.0, 0.7, 1.1, -0.6])  # best: 7, 2, 4, 10
GREEDY = SamplingParams(temperature=0.0)


def a_sampler(num_rows: int = 4) -> Sampler:
    return Sampler(VOCABULARY, (2,), num_rows)


def start(
    sampler: Sampler, row: int, sampling: SamplingParams, generated: Iterable[int] = (), seed: int = 0
) -> None:
    sampler.start(RowStart(row, pack_tokens(PROMPT), pack_tokens(generated), sampling, seed))


def step(sampler: Sampler, rows: Sequence[int], num_generated: int) -> list[int]:
    logits = LOGITS.expand(len(rows), -1).clone()
    positions = torch.full((len(rows),), len(PROMPT) + num_generated)
    return sampler.sample(logits, np.array(rows), positions).token_ids.tolist()


def run(sampling: SamplingParams, num_steps: int, generated: Sequence[int] = (), seed: int = 0) -> list[int]:
    """What a row draws after those tokens, alone."""
    sampler = a_sampler()
    start(sampler, 0, sampling, generated, seed)
    return [step(sampler, [0], len(generated) + each)[0] for each in range(num_steps)]


def test_penalties_count_what_the_sampler_drew_itself() -> None:
    assert run(SamplingParams(temperature=0.0, presence_penalty=2.0), 4) == [7, 2, 4, 10]
    assert run(SamplingParams(temperature=0.0, frequency_penalty=0.2), 4) == [7, 7, 2, 7]
    assert run(SamplingParams(temperature=0.0, repetition_penalty=5.0), 4) == [7, 2, 10, 9]


@pytest.mark.parametrize("penalty", ({"repetition_penalty": 5.0}, {"presence_penalty": 2.0}), ids=str)
def test_rows_that_lie_apart_are_penalized_and_those_between_are_not(penalty: dict[str, float]) -> None:
    sampler, penalized = a_sampler(), SamplingParams(temperature=0.0, **penalty)
    for row, sampling in enumerate((penalized, GREEDY, GREEDY, penalized)):
        start(sampler, row, sampling)
    assert step(sampler, [0, 1, 2, 3], 0) == [7, 7, 7, 7]
    assert step(sampler, [0, 1, 2, 3], 1) == [2, 7, 7, 2]


def test_frequency_and_presence_look_at_generated_tokens_and_repetition_at_the_prompt_too() -> None:
    boosted = {4: 2.0}  # over all others, and in the prompt
    assert run(SamplingParams(temperature=0.0, logit_bias=boosted, presence_penalty=2.0), 1) == [4]
    assert run(SamplingParams(temperature=0.0, logit_bias=boosted, frequency_penalty=2.0), 1) == [4]
    assert run(SamplingParams(temperature=0.0, logit_bias=boosted, repetition_penalty=3.0), 1) == [7]


@pytest.mark.parametrize(
    "sampling",
    (
        SamplingParams(),
        SamplingParams(frequency_penalty=0.37, presence_penalty=-0.21),
        SamplingParams(repetition_penalty=1.7, temperature=1.3),
        SamplingParams(bad_word_ids=((7, 2), (2, 7, 7), (4, 10, 7, 2)), top_p=0.9),
        SamplingParams(min_tokens=6, frequency_penalty=0.5, repetition_penalty=0.9, min_p=0.01),
    ),
    ids=("plain", "counts", "repetition", "bad words", "mixed"),
)
def test_a_row_that_is_started_again_goes_on_as_if_it_had_not_stopped(sampling: SamplingParams) -> None:
    """After a preemption, or on another engine, with the tokens it has."""
    for seed in range(5):
        whole = run(sampling, 20, seed=seed)
        for stop in (1, 2, 3, 9):
            assert run(sampling, 20 - stop, whole[:stop], seed) == whole[stop:]


def test_rows_draw_in_a_changing_batch_what_they_draw_alone() -> None:
    params = {
        0: SamplingParams(presence_penalty=0.7),
        1: SamplingParams(bad_word_ids=((7, 2),)),
        2: SamplingParams(temperature=0.0, repetition_penalty=1.4),
        3: SamplingParams(top_p=0.8, frequency_penalty=0.2),
    }
    sampler, drawn = a_sampler(), {row: [] for row in params}
    for row, sampling in params.items():
        start(sampler, row, sampling, seed=row)
    for rows in ([0, 1, 2, 3], [3, 1], [1, 3], [2], [0, 2], [0, 1, 2, 3], [0, 1, 2, 3]):
        logits = LOGITS.expand(len(rows), -1).clone()
        positions = torch.tensor([len(PROMPT) + len(drawn[row]) for row in rows])
        tokens = sampler.sample(logits, np.array(rows), positions).token_ids
        for row, token in zip(rows, tokens.tolist(), strict=True):
            drawn[row].append(token)
    for row, sampling in params.items():
        assert run(sampling, len(drawn[row]), seed=row) == drawn[row]


def test_a_row_given_back_leaves_nothing_to_the_next() -> None:
    sampler = a_sampler()
    wishful = SamplingParams(
        presence_penalty=2.0,
        repetition_penalty=50.0,
        bad_word_ids=((7,), (2, 4)),
        allowed_token_ids=(2, 4),
        logit_bias={4: 9.0},
        min_tokens=5,
        top_k=2,
        logprobs=3,
    )
    start(sampler, 0, wishful)
    step(sampler, [0], 0)
    sampler.end(0)
    start(sampler, 0, GREEDY)
    drawn = sampler.sample(LOGITS[None].clone(), np.array([0]), torch.tensor([3]))
    assert (drawn.token_ids.tolist(), dict(drawn.logprobs)) == ([7], {})


def test_a_started_row_replaces_what_the_row_was() -> None:
    sampler = a_sampler()
    start(sampler, 0, SamplingParams(temperature=0.0, frequency_penalty=2.0, bad_word_ids=((7, 2),)))
    assert step(sampler, [0], 0) == [7]
    start(sampler, 0, SamplingParams(temperature=0.0, frequency_penalty=2.0, bad_word_ids=((7, 2),)))
    assert step(sampler, [0], 0) == [7]


def test_a_row_that_ended_cannot_draw() -> None:
    sampler = a_sampler()
    start(sampler, 0, GREEDY)
    step(sampler, [0], 0)
    sampler.end(0)
    with pytest.raises(AssertionError, match="not been started"):
        step(sampler, [0], 1)


def test_a_bad_word_of_one_token_never_comes() -> None:
    assert run(SamplingParams(temperature=0.0, bad_word_ids=((7,), (2,))), 3) == [4, 4, 4]


def test_a_bad_words_last_token_is_forbidden_only_after_its_others() -> None:
    assert run(SamplingParams(temperature=0.0, bad_word_ids=((7, 7),)), 5) == [7, 2, 7, 2, 7]
    assert run(SamplingParams(temperature=0.0, bad_word_ids=((7, 7, 7),)), 5) == [7, 7, 2, 7, 7]
    assert run(SamplingParams(temperature=0.0, bad_word_ids=((2, 7),)), 3) == [7, 7, 7]


def test_several_bad_words_may_share_their_last_token() -> None:
    words = ((7, 7), (2, 7), (4, 4, 7), (2, 7, 7))
    assert run(SamplingParams(temperature=0.0, bad_word_ids=words), 6) == [7, 2, 2, 2, 2, 2]


def test_a_bad_word_is_made_of_generated_tokens_only() -> None:
    """The prompt ends in 4 4."""
    word = SamplingParams(temperature=0.0, bad_word_ids=((4, 7), (4, 4, 7)))
    assert run(word, 1) == [7]
    assert run(word, 1, generated=(4,)) == [2]


def test_a_bad_word_may_be_longer_than_all_that_was_generated() -> None:
    sampling = SamplingParams(temperature=0.0, bad_word_ids=((1, 1, 1, 1, 1, 7), (7, 7)))
    assert run(sampling, 2) == [7, 2]


def test_rows_with_longer_bad_words_join_rows_with_shorter_ones() -> None:
    sampler = a_sampler()
    start(sampler, 0, SamplingParams(temperature=0.0, bad_word_ids=((7, 7),)))
    assert step(sampler, [0], 0) == [7]
    start(sampler, 1, SamplingParams(temperature=0.0, bad_word_ids=((7, 7, 7, 7),)), generated=(7, 7))
    assert step(sampler, [1, 0], 1) == [7, 2]
    assert step(sampler, [1, 0], 2) == [2, 7]


def test_wide_state_grows_with_the_rows_that_ask_and_goes_with_the_last() -> None:
    matrix = RowMatrix(5, torch.float32)
    for row in (3, 9, 4):
        matrix.take(row).fill_(row)
    assert matrix.lines[matrix.lines_of([9, 3, 4])][:, 0].tolist() == [9, 3, 4]
    assert len(matrix.lines) == 4
    matrix.give_back(9)
    matrix.take(11).fill_(11)
    assert len(matrix.lines) == 4
    assert matrix.lines[matrix.lines_of([11, 3])][:, 4].tolist() == [11, 3]
    for row in (3, 4, 11):
        matrix.give_back(row)
    assert len(matrix.lines) == 0


def test_no_wide_state_is_kept_for_rows_without_penalties() -> None:
    sampler = a_sampler()
    start(sampler, 0, SamplingParams(top_p=0.5, logit_bias={1: 1.0}))
    assert not sampler._penalties._scales and not sampler._penalties._counts
    start(sampler, 1, SamplingParams(frequency_penalty=1.0))
    assert len(sampler._penalties._counts.lines) == 1 and not sampler._penalties._scales
