"""One version of a model as requests meet it: its core, its tokenizer, and the one way from text to token ids.

Made and found by `catalog.py`. Every route works with one of these, from a request's beginning to its end.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field

from protocol.membership import ServedModel
from protocol.sampling import SamplingParams
from router.http.request_metrics import RequestMetrics
from router.http.request_router import RequestRouter
from router.http.request_sampling import Bounds, SamplingDefaults
from router.text.bad_words import bad_word_ids
from router.text.tokenizer import Tokenizer

_LONG_CHARACTERS = 4096  # from here on tokenizing takes milliseconds and goes to a thread
_UNSAID_CONTEXT_TOKENS = 1 << 20  # while nobody has said one, the replica tells who is too long


@dataclass(slots=True)
class Serving:
    served: ServedModel  # the controller's newest word on it
    router: RequestRouter
    tokenizer: Tokenizer
    metrics: RequestMetrics  # of all versions of its name
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    files_context_tokens: int | None = None  # as the model's files say

    @property
    def context_tokens(self) -> int | None:
        """What was asked for, else what its replicas have said, else what its files say; None: nobody has."""
        return self.served.max_model_len or self.router.max_model_len or self.files_context_tokens

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.context_tokens or _UNSAID_CONTEXT_TOKENS, self.tokenizer.vocab_size)

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Long texts on a thread: the event loop has streams to feed."""
        if len(text) < _LONG_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens)

    async def encode_chat(self, text: str, owner: bytes) -> array[int]:
        """A rendered chat, which has its special tokens already. What its owner said before is looked up."""
        parts = self.tokenizer.part_encoder.look_up(text, owner)
        if parts.num_unknown_characters < _LONG_CHARACTERS:
            parts.encode()
        else:
            await asyncio.to_thread(parts.encode)
        return parts.token_ids()

    async def bad_word_ids(self, words: list[str] | None) -> tuple[tuple[int, ...], ...]:
        """Every spelling of every word. Raises InvalidRequest."""
        if not words:
            return ()
        SamplingParams(
            bad_words=tuple(words)
        )  # refuses too many or too long ones before there is work for them
        return await asyncio.to_thread(bad_word_ids, words, self.tokenizer)
