"""The bytes that one token stands for, as logprobs and `/tokenize` show them. Called by `tokenizer.py` alone.

A single token cannot simply be decoded: half a character becomes a replacement character, and a decoder for
prefix spaces drops a leading space. So the vocabulary's own spelling is read back instead.
"""

from __future__ import annotations

import re
from functools import cache

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_PREFIX_SPACE = "\u2581"


@cache
def byte_alphabet() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelling = {chr(byte): byte for byte in printable}
    return spelling | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def token_bytes(piece: str, byte_level: bool) -> bytes:
    """`piece` is the vocabulary's spelling of a token that is not an added one."""
    if byte_level:
        alphabet = byte_alphabet()
        if all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return piece.encode()
    match = _BYTE_FALLBACK.match(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace(_PREFIX_SPACE, " ").encode()
