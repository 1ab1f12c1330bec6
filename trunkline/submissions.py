"""From a prompt and its user's wishes to what the engine can take: cut to length, seeded, bad words as tokens.

Used by `llm.py`; knows no engine. The HTTP endpoint does the same for its requests in `router/http`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from router.text.bad_words import bad_word_ids
from router.text.tokenizer import Tokenizer
from router.text.truncation import truncated
from trunkline.prompts import TokenizedPrompt

_REMEMBERED_LISTS = 64  # of bad words: one list mostly serves a whole batch


class Submissions:
    """`seed` decides the seeds of all requests that bring none."""

    def __init__(self, tokenizer: Tokenizer, context_tokens: int, vocab_size: int, seed: int) -> None:
        self._context_tokens = context_tokens
        self._vocab_size = vocab_size
        self._seeds = random.Random(seed)

        @lru_cache(maxsize=_REMEMBERED_LISTS)
        def spellings(words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
            return bad_word_ids(words, tokenizer)

        self._spellings = spellings

    def prepare(
        self, prompt: TokenizedPrompt, sampling: SamplingParams
    ) -> tuple[TokenizedPrompt, SamplingParams]:
        """Both as the engine gets them. Raises InvalidRequest for bad words that cannot be forbidden."""
        token_ids = truncated(
            prompt.token_ids,
            sampling.truncate_prompt_tokens,
            sampling.truncation_side,
            context_tokens=self._context_tokens,
            max_tokens=sampling.max_tokens,
        )
        rest = max(self._context_tokens - len(token_ids), 0)
        filled = replace(
            sampling,
            seed=self._seeds.getrandbits(63) if sampling.seed is None else sampling.seed,
            max_tokens=rest if sampling.max_tokens is None else sampling.max_tokens,
            bad_word_ids=self._known((*sampling.bad_word_ids, *self._spellings(sampling.bad_words))),
        )
        return replace(prompt, token_ids=token_ids), filled

    def _known(self, words: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        each_once = tuple(dict.fromkeys(words))
        if not all(0 <= token_id < self._vocab_size for word in each_once for token_id in word):
            raise InvalidRequest(
                f"bad words take token ids between 0 and {self._vocab_size - 1}", param="bad_words"
            )
        return each_once
