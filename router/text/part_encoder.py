"""Rendered chats to token ids, part by part: what a conversation said before is not tokenized again.

A part is one added token and the text behind it, up to the next one:

    <|system|> Be brief. | <|end|> | <|user|> Hello | <|end|> | <|assistant|>

Tokenizers cut a text at these tokens before anything else happens to it, so the parts' ids joined are the whole
text's. A text of 32 KiB takes 5 ms to tokenize, looking its parts up 0.1 ms. Called by the HTTP endpoint.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from itertools import pairwise

import tokenizers

from protocol.tokens import pack_tokens, unpack_tokens

MAX_CHARACTERS = 8 * 1024 * 1024  # of all that is remembered; its ids take about as many bytes again
_MAX_SHARE = 16  # a part of more than this share of it is not worth what it would push out

Key = tuple[bytes, str]  # owner, part


class PartEncoder:
    """Remembers the parts used last. Only one thread may call it; `PartwiseText.encode` may run on any."""

    def __init__(self, backend: tokenizers.Tokenizer, max_characters: int = MAX_CHARACTERS) -> None:
        self._backend = backend
        self._max_characters = max_characters
        self._cuts = _cuts(backend)
        self._known: OrderedDict[Key, bytes] = OrderedDict()  # packed ids; the ones used last come last
        self._num_characters = 0

    def look_up(self, text: str, owner: bytes = b"") -> PartwiseText:
        """`owner` tells tenants apart: none can time whether another has said the same."""
        keys = [(owner, part) for part in self._parts(text)]
        found = [self._known.get(key) for key in keys]
        return PartwiseText(self, keys, found)

    def encode(self, parts: list[str]) -> list[bytes]:
        """Their ids, packed. Releases the interpreter's lock, and uses every core where they are long."""
        encodings = self._backend.encode_batch_fast(parts, add_special_tokens=False)
        return [pack_tokens(encoding.ids) for encoding in encodings]

    def remember(self, key: Key, token_ids: bytes) -> None:
        """The part was used now."""
        size = len(key[1])
        if key in self._known:
            self._known.move_to_end(key)
        elif size <= self._max_characters // _MAX_SHARE:
            self._known[key] = token_ids
            self._num_characters += size
            while self._num_characters > self._max_characters:
                (_, oldest), _ = self._known.popitem(last=False)
                self._num_characters -= len(oldest)

    def _parts(self, text: str) -> list[str]:
        if self._cuts is None:
            return [text]
        starts = (match.start() for match in self._cuts.finditer(text))
        places = [0, *(start for start in starts if start), len(text)]
        return [text[start:end] for start, end in pairwise(places)]


class PartwiseText:
    """One text on its way to ids: look it up, `encode` what is unknown, take `token_ids`."""

    def __init__(self, encoder: PartEncoder, keys: list[Key], found: list[bytes | None]) -> None:
        self._encoder = encoder
        self._keys = keys
        self._found = found
        self._unknown = [place for place, ids in enumerate(found) if ids is None]

    @property
    def num_unknown_characters(self) -> int:
        return sum(len(self._keys[place][1]) for place in self._unknown)

    def encode(self) -> None:
        encoded = self._encoder.encode([self._keys[place][1] for place in self._unknown])
        for place, token_ids in zip(self._unknown, encoded, strict=True):
            self._found[place] = token_ids

    def token_ids(self) -> array[int]:
        """Of the whole text; its parts are remembered."""
        known = [token_ids for token_ids in self._found if token_ids is not None]
        assert len(known) == len(self._keys), "token ids are taken after what was unknown has been encoded"
        for key, token_ids in zip(self._keys, known, strict=True):
            self._encoder.remember(key, token_ids)
        return unpack_tokens(b"".join(known))


def _cuts(backend: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Where texts are cut: at added tokens that are looked for in the text as it is, the longest where several fit.

    None where one of them depends on what is around it: it would be another token at a part's beginning.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    if not added or any(token.lstrip or token.single_word for token in added):
        return None
    contents = sorted((token.content for token in added), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents)))
