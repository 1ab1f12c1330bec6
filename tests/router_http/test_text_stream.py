"""Tokens to text: whole characters, right spaces, no part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from protocol.sampling import SamplingParams
from router.text.text_stream import TextStream
from router.text.tokenizer import Tokenizer

in_session = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stream(
    tokenizer: Tokenizer, token_ids: Sequence[int], sampling: SamplingParams, prompt: Sequence[int] = ()
) -> tuple[list[str], TextStream]:
    text = TextStream(tokenizer, sampling, prompt)
    return [*(text.push([token_id]) for token_id in token_ids), text.finish()], text


@in_session
@given(st.text(max_size=40))
def test_any_text_comes_out_as_it_went_in(tokenizer: Tokenizer, wanted: str) -> None:
    ids = tokenizer.encode(wanted, add_special_tokens=False)
    parts, _ = stream(tokenizer, ids, SamplingParams(skip_special_tokens=False, ignore_eos=True))
    assert "".join(parts) == wanted


@in_session
@given(st.text(alphabet="helo wrd,.你好🙂é", max_size=40))
def test_a_prefix_space_tokenizer_keeps_the_spaces_inside_a_text(
    prefix_space_tokenizer: Tokenizer, wanted: str
) -> None:
    prompt = prefix_space_tokenizer.encode("hello")
    whole = prefix_space_tokenizer.encode("hello" + wanted)
    if whole[: len(prompt)] != prompt:  # a merge across the border: there is no such output
        return
    parts, _ = stream(prefix_space_tokenizer, whole[len(prompt) :], SamplingParams(), prompt)
    assert "".join(parts) == wanted


@pytest.mark.parametrize("prompt", ["", "größer", "🙂"])
@in_session
@given(st.lists(st.integers(0, 319), max_size=60), st.booleans(), st.booleans())
def test_tokens_shown_without_decoding_read_as_if_decoded(
    tokenizer: Tokenizer, prompt: str, token_ids: list[int], skip: bool, spaces: bool
) -> None:
    class Decoding(Tokenizer):
        def independent_text(self, token_id: int) -> str | None:
            return None

    decoding = Decoding(tokenizer._backend, eos_token_ids=tokenizer.eos_token_ids)
    sampling = SamplingParams(skip_special_tokens=skip, spaces_between_special_tokens=spaces)
    start = tokenizer.encode(prompt)[:-1]  # maybe inside a character
    assert stream(tokenizer, token_ids, sampling, start)[0] == stream(decoding, token_ids, sampling, start)[0]


def test_most_tokens_are_shown_without_decoding(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TextStream(tokenizer, SamplingParams(), ())
    monkeypatch.setattr(Tokenizer, "decode", None)  # to call it would fail
    assert text.push(tokenizer.encode("hello world, how are you")) == "hello world, how are you"


@in_session
@given(st.lists(st.integers(0, 319), max_size=60), st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_the_text_does_not_depend_on_how_tokens_are_grouped(
    tokenizer: Tokenizer, token_ids: list[int], groups: list[int]
) -> None:
    sampling = SamplingParams(stop=("lo", "\ufffdx", "he"))
    singly, one = stream(tokenizer, token_ids, sampling)
    grouped = TextStream(tokenizer, sampling, ())
    rest = list(token_ids)
    for size in groups * 60:
        grouped.push(rest[:size])
        rest = rest[size:]
    grouped.finish()
    assert grouped.text == one.text == "".join(singly)
    assert (grouped.stopped_by, grouped.num_tokens) == (one.stopped_by, one.num_tokens)


@in_session
@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(
    tokenizer: Tokenizer, wanted: str, stops: list[str]
) -> None:
    ids = tokenizer.encode(wanted)
    parts, text = stream(tokenizer, ids, SamplingParams(stop=tuple(stops)))
    ends = [(wanted.find(stop) + len(stop), wanted.find(stop), stop) for stop in stops if stop in wanted]
    if ends:
        _, start, stop = min(ends)
        assert ("".join(parts), text.stopped_by) == (wanted[:start], stop)
    else:
        assert ("".join(parts), text.stopped_by) == (wanted, None)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\u732b")
    assert len(ids) > 1
    parts, _ = stream(tokenizer, ids, SamplingParams())
    assert parts == [*[""] * (len(ids) - 1), "\u732b", ""]


def test_a_character_that_the_prompt_began_is_completed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\u732b!")
    parts, _ = stream(tokenizer, ids[2:], SamplingParams(), prompt=ids[:2])
    assert "".join(parts) == "\u732b!"


def test_an_unfinished_character_at_the_end_shows_as_a_replacement(tokenizer: Tokenizer) -> None:
    parts, _ = stream(tokenizer, tokenizer.encode("a\u732b")[:-1], SamplingParams())
    assert parts[-1] == "\ufffd"


def test_bytes_that_are_no_text_do_not_hold_the_stream_for_ever(tokenizer: Tokenizer) -> None:
    lone = tokenizer.encode("\u732b")[-1]
    parts, _ = stream(tokenizer, [lone] * 100, SamplingParams())
    assert len("".join(parts[:-1])) > 90


def test_the_window_that_is_decoded_stays_short(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    decode = Tokenizer.decode

    def watched(self: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode(self, token_ids, skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", watched)
    stream(tokenizer, tokenizer.encode("hello world \u732b " * 100), SamplingParams())
    assert longest <= 16


def test_the_end_token_is_no_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("hello"), *tokenizer.eos_token_ids]
    shown = SamplingParams(include_stop_str_in_output=True, skip_special_tokens=False)
    assert stream(tokenizer, ids, SamplingParams(skip_special_tokens=False))[1].text == "hello"
    assert stream(tokenizer, ids, shown)[1].text == "hello<|end|>"


def test_a_stop_id_is_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello!")
    assert stream(tokenizer, ids, SamplingParams(stop_token_ids=(ids[-1],)))[1].text == "hello"


def test_special_tokens_are_shown_only_on_demand(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), *tokenizer.encode("<|user|>"), *tokenizer.encode("b")]
    assert stream(tokenizer, ids, SamplingParams())[1].text == "ab"
    assert stream(tokenizer, ids, SamplingParams(skip_special_tokens=False))[1].text == "a<|user|>b"


def test_no_part_of_a_stop_string_is_ever_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("xx zqz yy")
    parts, text = stream(tokenizer, ids, SamplingParams(stop=("zqz",)))
    assert "z" not in "".join(parts)
    assert text.num_tokens < len(ids)


def test_the_stop_string_is_included_on_demand(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    assert (
        stream(tokenizer, ids, SamplingParams(stop=("two",), include_stop_str_in_output=True))[1].text
        == "one two"
    )


def test_stop_strings_count_from_min_tokens_on(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("zqzqzq!")
    first = len(tokenizer.encode("zqzq"))
    parts, text = stream(tokenizer, ids, SamplingParams(stop=("q",), min_tokens=first, max_tokens=20))
    assert "".join(parts) == "zqz"
    assert text.num_tokens == first


def pushed(tokenizer: Tokenizer, token_ids: Sequence[int], sampling: SamplingParams) -> TextStream:
    return stream(tokenizer, token_ids, sampling)[1]


def test_a_stop_string_that_ends_inside_a_character_waits_for_the_whole_of_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\u732bb")
    parts, text = stream(tokenizer, ids, SamplingParams(stop=("\u732b",)))
    assert parts == ["a", *[""] * (len(parts) - 1)] and text.num_tokens == len(ids) - 1


def test_what_only_looked_like_a_stop_string_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc sto")
    parts, text = stream(tokenizer, ids, SamplingParams(stop=("stop",)))
    assert text.text == "abc sto" and parts[-1] == "sto" and text.stopped_by is None


def test_a_stop_string_may_be_completed_by_the_very_last_token(tokenizer: Tokenizer) -> None:
    text = pushed(tokenizer, tokenizer.encode("abc stop"), SamplingParams(stop=("stop",)))
    assert (text.text, text.stopped_by) == ("abc ", "stop")


def test_half_a_character_at_the_end_may_complete_a_stop_string(tokenizer: Tokenizer) -> None:
    text = pushed(tokenizer, tokenizer.encode("a\u732b")[:-1], SamplingParams(stop=("a\ufffd",)))
    assert (text.text, text.stopped_by) == ("", "a\ufffd")


def test_of_two_stop_strings_that_end_together_the_longer_counts(tokenizer: Tokenizer) -> None:
    text = pushed(tokenizer, tokenizer.encode("xabz"), SamplingParams(stop=("b", "ab")))
    assert (text.text, text.stopped_by) == ("x", "ab")


def test_a_stop_string_inside_a_longer_one_ends_the_text_first(tokenizer: Tokenizer) -> None:
    text = pushed(tokenizer, tokenizer.encode("xabcz"), SamplingParams(stop=("abcz", "bc")))
    assert (text.text, text.stopped_by) == ("xa", "bc")


def test_text_behind_a_stop_string_in_the_same_token_is_no_text(tokenizer: Tokenizer) -> None:
    (token_id,) = (id for id in range(tokenizer.vocab_size) if tokenizer.token_text(id) == " the")
    sampling = SamplingParams(stop=("h",), include_stop_str_in_output=True)
    assert pushed(tokenizer, [token_id], sampling).text == " th"
    assert pushed(tokenizer, [token_id], SamplingParams(stop=("h",))).text == " t"


def test_a_special_token_can_be_a_stop_string_when_it_is_shown(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a<|user|>b")]
    shown = SamplingParams(stop=("<|user|>",), skip_special_tokens=False)
    assert pushed(tokenizer, ids, shown).text == "a"
    assert pushed(tokenizer, ids, SamplingParams(stop=("<|user|>",))).text == "ab"


@in_session
@given(st.text(max_size=30))
def test_a_token_begins_where_the_characters_before_it_end(tokenizer: Tokenizer, wanted: str) -> None:
    ids = tokenizer.encode(wanted)
    text = TextStream(
        tokenizer, SamplingParams(stop=("\x00\x00",), skip_special_tokens=False, ignore_eos=True), ()
    )
    for place, token_id in enumerate(ids):
        before = b"".join(map(tokenizer.token_bytes, ids[:place]))
        assert text.num_characters == len(before.decode(errors="ignore"))
        text.push([token_id])


@pytest.fixture
def spacing_tokenizer() -> Tokenizer:
    """Whole words, and a decoder that puts a space between any two of them."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|user|>", "<|end|>"])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("spaces", "wanted"), [(True, "a <|user|> <|end|> b c"), (False, "a<|user|><|end|>b c")]
)
def test_spaces_around_special_tokens_can_be_left_out(
    spacing_tokenizer: Tokenizer, spaces: bool, wanted: str
) -> None:
    sampling = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=spaces)
    parts, text = stream(spacing_tokenizer, [0, 3, 4, 1, 2], sampling)
    assert "".join(parts) == text.text == wanted


def test_a_space_that_a_token_has_itself_stays(prefix_space_tokenizer: Tokenizer) -> None:
    ids = [*prefix_space_tokenizer.encode("hello", False), *prefix_space_tokenizer.encode("hello")]
    sampling = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=False)
    assert pushed(prefix_space_tokenizer, ids, sampling).text == "hello<s> hello"


@in_session
@given(st.lists(st.integers(0, 319), max_size=40))
def test_where_no_decoder_adds_spaces_leaving_them_out_changes_nothing(
    tokenizer: Tokenizer, token_ids: list[int]
) -> None:
    shown = SamplingParams(skip_special_tokens=False, ignore_eos=True)
    close = SamplingParams(skip_special_tokens=False, ignore_eos=True, spaces_between_special_tokens=False)
    assert pushed(tokenizer, token_ids, close).text == pushed(tokenizer, token_ids, shown).text
