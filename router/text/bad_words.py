"""Words that must not be generated, as the token sequences that would spell them. Used where text is tokenized: by
the HTTP endpoint and by the offline library. Knows no request.

One word has several spellings, because tokenizers write a word's leading space into its first token:

                      byte-level BPE      sentencepiece
    a text begins     [word]              [▁word]
    after a space     [Ġword]             [▁word]
    inside a text     [word]              [word]        after a line break, a quote, another word

A model may still spell a word in other pieces than its tokenizer would: no list of tokens can exclude that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.errors import InvalidRequest
from router.text.tokenizer import Tokenizer

Spelling = tuple[int, ...]
_BEFORE = "\n"  # any text that merges with nothing behind it


def bad_word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[Spelling, ...]:
    """Every spelling of every word, each once. Raises InvalidRequest for a word that has no tokens."""
    found: dict[Spelling, None] = {}
    for word in words:
        spellings = _spellings(word, tokenizer)
        if not spellings:
            raise InvalidRequest(
                f"the bad word {word[:40]!r} has no tokens in this model's vocabulary: leave it out",
                param="bad_words",
            )
        found.update(dict.fromkeys(spellings))
    return tuple(found)


def _spellings(word: str, tokenizer: Tokenizer) -> list[Spelling]:
    """With and without a space in front, however many the word itself came with."""
    bare = word.lstrip(" ") or word
    alone = _encode(bare, tokenizer)
    inside = _inside_text(bare, tokenizer)
    spaced = _inside_text(f" {bare}", tokenizer) or _encode(f" {bare}", tokenizer)
    candidates = dict.fromkeys(spelling for spelling in (alone, inside, spaced) if spelling)
    return [each for each in candidates if not any(_ends_with(each, other) for other in candidates)]


def _inside_text(text: str, tokenizer: Tokenizer) -> Spelling:
    """The tokens of a text that stands behind another; empty where the two cannot be told apart."""
    before = _encode(_BEFORE, tokenizer)
    together = _encode(_BEFORE + text, tokenizer)
    return together[len(before) :] if before and together[: len(before)] == before else ()


def _encode(text: str, tokenizer: Tokenizer) -> Spelling:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _ends_with(spelling: Sequence[int], other: Sequence[int]) -> bool:
    """Forbidding `other` forbids it too."""
    return len(spelling) > len(other) and spelling[-len(other) :] == other
