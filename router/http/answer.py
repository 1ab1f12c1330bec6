"""What the answers of both endpoints have in common: identity, usage, choices that grow. Not their shapes.

`completions.py` and `chat.py` implement `Answer`; `answer_response.py` sends it whole or in chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protocol.messages import TokenLogprob
from router.http.delta import Delta, Finish, Prompt, Usage
from router.http.logprobs import Spelling, of_prompt, prompt_logprobs
from router.http.sse import HOLE, EventShape, events
from router.text.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The same in every chunk of one answer."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Extras:
    """What a client wants to see beside the text. Numbers are of alternatives a token; None: no logprobs at all."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False
    tokens_as_ids: bool = False


@dataclass(slots=True)
class Choice:
    """One choice so far."""

    index: int
    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    finish: Finish | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs or ())
        self.offsets.extend(delta.offsets)
        self.finish = delta.finish
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs

    @property
    def merged(self) -> Delta:
        """As if all of it had come at once."""
        return Delta(
            self.index,
            "".join(self.texts),
            tuple(self.token_ids),
            tuple(self.logprobs),
            self.finish,
            tuple(self.offsets),
            self.prompt_logprobs,
        )


class Answer(ABC):
    """Either every delta goes through `chunks`, or every one through `add` and then `whole` is asked for."""

    def __init__(
        self, head: AnswerHead, tokenizer: Tokenizer, prompts: Sequence[Prompt], extras: Extras
    ) -> None:
        self.head = head
        self.extras = extras
        self.spelling = Spelling(tokenizer, extras.tokens_as_ids)
        each = [prompt for prompt in prompts for _ in range(prompt.sampling.n)]
        self.choices = [Choice(index, prompt) for index, prompt in enumerate(each)]
        self._shapes: dict[int, EventShape] = {}  # of each choice's chunks that only bring text
        self._silent = set(range(len(each)))  # choices whose first chunk is still to come

    def add(self, delta: Delta) -> None:
        self.choices[delta.choice].add(delta)

    @property
    def num_scored_tokens(self) -> int:
        """Tokens whose logprobs it has: they make an answer long."""
        return sum(len(choice.logprobs) + len(choice.prompt_logprobs or ()) for choice in self.choices)

    def events(self, delta: Delta) -> bytes:
        """Its chunks as they are sent. Of most, only the text is to be encoded, which takes a tenth of the time."""
        if not self._only_brings_text(delta):
            return events(self.chunks(delta))
        shape = self._shapes.get(delta.choice)
        if shape is None:
            (chunk,) = self.chunks(replace(delta, text=HOLE))
            shape = self._shapes[delta.choice] = EventShape(chunk)
        return shape.filled(delta.text)

    def _only_brings_text(self, delta: Delta) -> bool:
        plain = self.extras.logprobs is None and not self.extras.token_ids
        return plain and delta.text != "" and delta.finish is None and delta.choice not in self._silent

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[Json]:
        """The chunks that show it, maybe none."""

    @abstractmethod
    def usage_chunk(self, usage: Usage) -> Json:
        """The last chunk, when the client asked for it."""

    @abstractmethod
    def whole(self, usage: Usage) -> Json:
        """The answer in one piece."""

    def is_first(self, delta: Delta) -> bool:
        """Whether nothing of its choice has been shown. Says so once."""
        first = delta.choice in self._silent
        self._silent.discard(delta.choice)
        return first

    def about_prompt(self, delta: Delta) -> Json:
        """What the client asked to see of the prompt itself. `delta` is its choice's first, or all of it."""
        prompt, shown = self.choices[delta.choice].prompt, {}
        if self.extras.prompt_logprobs is not None:
            scored = of_prompt(len(prompt.token_ids), delta.prompt_logprobs, self.extras.prompt_logprobs)
            shown["prompt_logprobs"] = prompt_logprobs(self.spelling.tokenizer, prompt.token_ids, scored)
        return shown | ({"prompt_token_ids": list(prompt.token_ids)} if self.extras.token_ids else {})

    def about_tokens(self, delta: Delta) -> Json:
        return {"token_ids": list(delta.token_ids)} if self.extras.token_ids else {}


def ending(finish: Finish | None) -> Json:
    """The two fields that say how a choice ended."""
    if finish is None:
        return {"finish_reason": None, "stop_reason": None}
    return {"finish_reason": finish.reason, "stop_reason": finish.stop_reason}


def usage_json(usage: Usage) -> Json:
    """Cached tokens always, 0 too."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
