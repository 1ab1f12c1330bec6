"""What every route works with, and the one way from text to token ids. Made by `api.py`, once an endpoint."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass

from protocol.errors import Draining, ModelNotFound, NoReplica
from protocol.sampling import SamplingParams
from router.http.api_config import ApiConfig
from router.http.auth import Authenticator
from router.http.metrics import RouterMetrics
from router.http.request_router import RequestRouter
from router.http.request_sampling import Bounds
from router.text.bad_words import bad_word_ids
from router.text.tokenizer import Tokenizer

_LONG_CHARACTERS = 4096  # from here on tokenizing takes milliseconds and goes to a thread
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Serving:
    router: RequestRouter
    tokenizer: Tokenizer
    config: ApiConfig
    metrics: RouterMetrics
    authenticator: Authenticator

    @property
    def bounds(self) -> Bounds:
        """Raises NoReplica while nobody has said how long the context is."""
        context = self.router.max_model_len or self.config.max_model_len
        if context is None:
            raise NoReplica("no replica has started yet", retry_after_s=RETRY_AFTER_S)
        return Bounds(context, self.tokenizer.vocab_size)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.config.model, *self.config.aliases)

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound. None: whatever is served."""
        if name is not None and name not in self.models:
            raise ModelNotFound(
                f"the model {name!r} is not served here: ask for {self.config.model!r}", param="model"
            )

    def check_ready(self) -> None:
        """Raises Draining or NoReplica when no request could run now."""
        if self.router.draining:
            raise Draining("this router is draining: ask another one", retry_after_s=RETRY_AFTER_S)
        if not self.router.ready:
            raise NoReplica("no replica is ready to serve", retry_after_s=RETRY_AFTER_S)

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
