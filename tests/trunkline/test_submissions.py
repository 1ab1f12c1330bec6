"""Prompts and parameters of the offline library as its engine gets them."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from router.text.tokenizer import Tokenizer
from trunkline.prompts import TokenizedPrompt
from trunkline.submissions import Submissions

SAPLING = Path(__file__).parents[2] / "sapling"
PROMPT = TokenizedPrompt("text", array("i", range(100)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(SAPLING)


@pytest.fixture
def submissions(tokenizer: Tokenizer) -> Submissions:
    return Submissions(tokenizer, context_tokens=64, vocab_size=2048, seed=0)


def kept(submissions: Submissions, sampling: SamplingParams) -> list[int]:
    return list(submissions.prepare(PROMPT, sampling)[0].token_ids)


def test_a_long_prompt_keeps_the_end_or_the_beginning(submissions: Submissions) -> None:
    assert kept(submissions, SamplingParams(truncate_prompt_tokens=4)) == [96, 97, 98, 99]
    right = SamplingParams(truncate_prompt_tokens=4, truncation_side="right")
    assert kept(submissions, right) == [0, 1, 2, 3]
    assert len(kept(submissions, SamplingParams(truncate_prompt_tokens=1000))) == 100


@pytest.mark.parametrize(("max_tokens", "room"), [(None, 1), (0, 0), (16, 16), (64, -36)])
def test_minus_one_leaves_room_for_what_is_to_come(
    submissions: Submissions, max_tokens: int | None, room: int
) -> None:
    """Where nothing makes it fit, the engine gets all of it and says why not."""
    sampling = SamplingParams(truncate_prompt_tokens=-1, max_tokens=max_tokens)
    assert len(kept(submissions, sampling)) == 64 - room


def test_the_rest_of_the_context_is_counted_after_the_cut(submissions: Submissions) -> None:
    cut = SamplingParams(truncate_prompt_tokens=60, max_tokens=None)
    assert submissions.prepare(PROMPT, cut)[1].max_tokens == 4


def test_a_side_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="truncation_side"):
        SamplingParams(truncation_side="middle")


def test_bad_words_become_tokens_beside_those_that_came_as_such(
    submissions: Submissions, tokenizer: Tokenizer
) -> None:
    sampling = SamplingParams(bad_words=("fox",), bad_word_ids=((1, 2),))
    _, filled = submissions.prepare(PROMPT, sampling)
    assert set(filled.bad_word_ids) == {
        (1, 2),
        tuple(tokenizer.encode("fox")),
        tuple(tokenizer.encode(" fox")),
    }


def test_one_list_of_bad_words_is_tokenized_once_for_a_batch(
    submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingParams(bad_words=("fox",))
    first = submissions.prepare(PROMPT, sampling)[1]
    monkeypatch.setattr(Tokenizer, "encode", None)
    assert submissions.prepare(PROMPT, sampling)[1].bad_word_ids == first.bad_word_ids


@pytest.mark.parametrize("token_id", [-1, 2048])
def test_a_bad_word_outside_the_vocabulary_is_refused(submissions: Submissions, token_id: int) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 2047"):
        submissions.prepare(PROMPT, SamplingParams(bad_word_ids=((3, token_id),)))


def test_seeds_are_drawn_for_requests_that_bring_none(submissions: Submissions) -> None:
    drawn = [submissions.prepare(PROMPT, SamplingParams())[1].seed for _ in range(2)]
    assert None not in drawn and drawn[0] != drawn[1]
    assert submissions.prepare(PROMPT, SamplingParams(seed=7))[1].seed == 7
