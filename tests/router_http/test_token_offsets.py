"""Where tokens begin in a text that was given with them."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.text.token_offsets import token_offsets
from router.text.tokenizer import Tokenizer

in_session = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def offsets(tokenizer: Tokenizer, text: str, token_ids: list[int]) -> list[int]:
    return token_offsets(text, map(tokenizer.token_bytes, token_ids))


@in_session
@given(st.text(max_size=40))
def test_every_token_begins_where_the_ones_before_it_end(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    for place, offset in enumerate(offsets(tokenizer, text, ids)):
        before = b"".join(map(tokenizer.token_bytes, ids[:place]))
        assert offset == len(before.decode(errors="ignore"))


def test_a_special_token_that_is_not_shown_takes_no_room(prefix_space_tokenizer: Tokenizer) -> None:
    ids = prefix_space_tokenizer.encode("hello world")
    found = offsets(prefix_space_tokenizer, "hello world", ids)
    assert found[:3] == [0, 0, 1]
    assert "hello world"[found[ids.index(prefix_space_tokenizer.encode(" w", False)[-1])] :] == " world"


def test_one_that_is_shown_does(tokenizer: Tokenizer) -> None:
    text = "<|user|>hi<|end|>"
    assert offsets(tokenizer, text, tokenizer.encode(text)) == [0, 8, 9, 10]


def test_half_a_character_does_not_lose_the_rest(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("猫 hello")[1:]
    text = tokenizer.decode(ids)
    found = offsets(tokenizer, text, ids)
    assert text[found[-1] :] and text[found[-1] :] == tokenizer.token_text(ids[-1])


def test_a_token_that_is_nowhere_stays_where_it_would_be() -> None:
    assert token_offsets("ab", [b"a", b"zz", b"b", b""]) == [0, 1, 1, 2]
