"""Chats are tokenized part by part, into the very ids of the whole text."""

from __future__ import annotations

from array import array

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.text.part_encoder import PartEncoder
from router.text.tokenizer import Tokenizer

in_session = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
chats = st.lists(
    st.sampled_from(
        ["<|user|>", "<|end|>", "<|", "end|>", "<s>", " ", "\n", "hello", "héllo 你好", "w or ld"]
    ),
    max_size=30,
).map("".join)


def encode(encoder: PartEncoder, text: str, owner: bytes = b"") -> array[int]:
    parts = encoder.look_up(text, owner)
    parts.encode()
    return parts.token_ids()


def unknown(encoder: PartEncoder, text: str, owner: bytes = b"") -> int:
    return encoder.look_up(text, owner).num_unknown_characters


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> PartEncoder:
    return PartEncoder(tokenizer._backend)


@pytest.mark.parametrize("kind", ["tokenizer", "prefix_space_tokenizer"])
@in_session
@given(text=chats)
def test_the_ids_are_those_of_the_whole_text(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    encoder = PartEncoder(tokenizer._backend)
    wanted = tokenizer.encode(text, add_special_tokens=False)
    assert list(encode(encoder, text)) == wanted
    assert list(encode(encoder, text)) == wanted, "what was remembered must say the same"


def test_what_was_said_before_is_not_tokenized_again(encoder: PartEncoder) -> None:
    encode(encoder, "<|user|>hello<|end|><|assistant|>")
    assert unknown(encoder, "<|user|>hello<|end|><|assistant|>") == 0
    assert unknown(encoder, "<|user|>hello<|end|><|user|>more<|end|>") == len("<|user|>more")


def test_no_tenant_can_tell_what_another_has_said(encoder: PartEncoder) -> None:
    encode(encoder, "<|user|>hello", owner=b"one")
    assert unknown(encoder, "<|user|>hello", owner=b"one") == 0
    assert unknown(encoder, "<|user|>hello", owner=b"other") == len("<|user|>hello")


def test_parts_that_were_not_used_for_longest_are_forgotten_first(tokenizer: Tokenizer) -> None:
    encoder = PartEncoder(tokenizer._backend, max_characters=200)
    texts = [f"<|user|>{number:02d}" for number in range(20)]  # of ten characters each
    for text in texts:
        encode(encoder, text)
    encode(encoder, texts[0])
    encode(encoder, "<|user|>new!")
    assert [text for text in texts if unknown(encoder, text)] == texts[1:3]


def test_a_part_of_a_large_share_of_the_memory_is_not_remembered(tokenizer: Tokenizer) -> None:
    encoder = PartEncoder(tokenizer._backend, max_characters=160)
    encode(encoder, "<|user|>hi")
    encode(encoder, "<|user|>hello")
    assert unknown(encoder, "<|user|>hi") == 0
    assert unknown(encoder, "<|user|>hello") > 0


@pytest.mark.parametrize("nature", [{"lstrip": True}, {"single_word": True}])
def test_a_text_is_not_cut_at_tokens_that_look_around_themselves(
    tokenizer: Tokenizer, nature: dict[str, bool]
) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken("<|mask|>", normalized=False, **nature)])
    text = "<|user|>hello  <|mask|>x<|mask|> <|end|>"
    encoder = PartEncoder(backend)
    assert list(encode(encoder, text)) == backend.encode(text, add_special_tokens=False).ids
    assert unknown(encoder, "<|user|>hello  ") > 0, "known parts mean that it was cut"


def test_of_two_added_tokens_the_longer_one_is_taken(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.add_special_tokens(["<|end|><|user"])
    text = "<|user|>hi<|end|><|user|>ho<|end|>?"
    assert list(encode(PartEncoder(backend), text)) == backend.encode(text, add_special_tokens=False).ids
