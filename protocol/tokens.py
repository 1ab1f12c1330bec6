"""Token ids as they travel: little-endian int32, four bytes each. Called wherever ids cross a border."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

TOKEN_BYTES = 4


def pack_tokens(token_ids: Iterable[int]) -> bytes:
    """Ids to bytes. An `array('i')` is taken as it is; anything else is copied once."""
    packed = (
        token_ids if isinstance(token_ids, array) and token_ids.typecode == "i" else array("i", token_ids)
    )
    return _little_endian(packed).tobytes()


def unpack_tokens(data: bytes) -> array[int]:
    """Bytes to ids. Raises ValueError when the length is no multiple of four."""
    packed = array("i")
    packed.frombytes(data)
    return _little_endian(packed)


def _little_endian(packed: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return packed
    swapped = array("i", packed)
    swapped.byteswap()
    return swapped
