"""Bad words as token sequences: every way in which a tokenizer writes the word."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from protocol.errors import InvalidRequest
from router.text.bad_words import bad_word_ids
from router.text.tokenizer import Tokenizer


def texts(tokenizer: Tokenizer, *words: str) -> set[str]:
    spellings = bad_word_ids(words, tokenizer)
    return {"".join(map(tokenizer.token_text, spelling)) for spelling in spellings}


def test_a_word_counts_with_and_without_a_space(tokenizer: Tokenizer) -> None:
    assert texts(tokenizer, "fox") == texts(tokenizer, " fox") == {"fox", " fox"}


def test_a_prefix_space_tokenizer_has_a_spelling_for_the_middle_of_a_text(
    prefix_space_tokenizer: Tokenizer,
) -> None:
    assert texts(prefix_space_tokenizer, "wor") == {" wor", "wor"}
    inside = tuple(prefix_space_tokenizer.encode("hello,wor", False)[-3:])
    assert inside in bad_word_ids(["wor"], prefix_space_tokenizer)


def test_every_word_is_forbidden_wherever_it_stands(tokenizer: Tokenizer) -> None:
    spellings = bad_word_ids(["fox"], tokenizer)
    for text in ("fox", "the fox", "the\nfox", "a fox."):
        ids = tuple(tokenizer.encode(text))
        assert any(ids[at : at + len(each)] == each for each in spellings for at in range(len(ids)))


def test_a_spelling_that_another_one_forbids_already_is_left_out(tokenizer: Tokenizer) -> None:
    spellings = bad_word_ids(["7"], tokenizer)
    assert len(spellings) == len(set(spellings))
    assert not any(a != b and a[-len(b) :] == b for a in spellings for b in spellings)


@pytest.mark.parametrize("word", ["\n", "\n\n", " ", "猫", "<|end|>", "two words"])
def test_odd_words_are_forbidden_as_they_are(tokenizer: Tokenizer, word: str) -> None:
    assert tuple(tokenizer.encode(word)) in bad_word_ids([word], tokenizer)


def test_words_share_no_spelling_twice(tokenizer: Tokenizer) -> None:
    assert bad_word_ids(["fox", " fox", "fox"], tokenizer) == bad_word_ids(["fox"], tokenizer)


def test_a_word_without_tokens_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.normalizer = normalizers.Strip()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(InvalidRequest, match="no tokens") as refused:
        bad_word_ids(["a", "\t"], Tokenizer(backend))
    assert refused.value.param == "bad_words"
