"""Which part of a prompt that is too long is kept, for requests that ask for it. Called before anything is counted
or hashed, by the HTTP endpoint and by the offline library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

TokensT = TypeVar("TokensT", bound=Sequence[int])
CONTEXT_LENGTH = -1  # `truncate_prompt_tokens`: whatever leaves room for the tokens to generate


def truncated(
    token_ids: TokensT, keep: int | None, side: str | None, *, context_tokens: int, max_tokens: int | None
) -> TokensT:
    """The last `keep` tokens (side left, the default) or the first (right); all of them where `keep` is None.

    `max_tokens` None: at least one must follow. A prompt that no truncation can make fit comes back whole, and so
    does one with a `keep` out of range: both are refused, with their reason, where sampling parameters are made.
    """
    if keep == CONTEXT_LENGTH:
        keep = context_tokens - (1 if max_tokens is None else max_tokens)
    if keep is None or not 1 <= keep < len(token_ids):
        return token_ids
    kept = token_ids[:keep] if side == "right" else token_ids[-keep:]
    return kept  # type: ignore[return-value]  # a slice of a list is a list, of an array an array
