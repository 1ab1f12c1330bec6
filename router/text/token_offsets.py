"""Where each token of a text begins in it, for clients that ask for the text they sent beside its tokens.

Called by the completions endpoint for echoed prompts. The text is what the client sees: a prompt as it was given,
or decoded token ids. So tokens and text may differ: special tokens that are not shown, a space that a decoder drops
at the beginning, a character that was cut in two.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

_LOST_BYTES = 32  # how far ahead the walk looks for a token that is not where it should be


def token_offsets(text: str, pieces: Iterable[bytes]) -> list[int]:
    """In characters. `pieces` are the tokens' own bytes; one that is not in the text begins where the next one does.

    A token inside a character begins where the character does.
    """
    data = text.encode(errors="replace")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offsets, at, num_characters = [], 0, 0
    for piece in pieces:
        start, end = _place(data, piece, at)
        num_characters += len(decoder.decode(data[at:start]))
        offsets.append(num_characters)
        num_characters += len(decoder.decode(data[start:end]))
        at = end
    return offsets


def _place(data: bytes, piece: bytes, at: int) -> tuple[int, int]:
    """Where a token's bytes lie, from `at` on; an empty place at `at` for one that is not shown."""
    if data.startswith(piece, at):
        return at, at + len(piece)
    if at == 0 and piece.startswith(b" ") and data.startswith(piece[1:]):
        return 0, len(piece) - 1  # a prefix space, which the text does not have
    found = data.find(piece, at, at + len(piece) + _LOST_BYTES)
    return (at, at) if found < 0 else (found, found + len(piece))
