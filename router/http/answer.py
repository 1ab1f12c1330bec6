"""What the answers of both endpoints have in common: identity, usage, choices that grow. Not their shapes.

`completions.py` and `chat.py` implement `Answer`; `answer_response.py` sends it whole or in chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from protocol.messages import TokenLogprob
from router.http.generate import Delta, Finish, Usage
from router.text.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The same in every chunk of one answer."""

    id: str
    created: int
    model: str


@dataclass(slots=True)
class Choice:
    """One choice so far."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def ending(self) -> Json:
        return ending(self.finish)


class Answer(ABC):
    """Either every delta goes through `chunks`, or every one through `add` and then `whole` is asked for."""

    def __init__(self, head: AnswerHead, tokenizer: Tokenizer, num_choices: int) -> None:
        self.head = head
        self.tokenizer = tokenizer
        self.choices = [Choice(index) for index in range(num_choices)]

    def add(self, delta: Delta) -> None:
        choice = self.choices[delta.choice]
        choice.texts.append(delta.text)
        choice.token_ids.extend(delta.token_ids)
        choice.logprobs.extend(delta.logprobs or ())
        choice.finish = delta.finish

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[Json]:
        """The chunks that show it, maybe none."""

    @abstractmethod
    def usage_chunk(self, usage: Usage) -> Json:
        """The last chunk, when the client asked for it."""

    @abstractmethod
    def whole(self, usage: Usage) -> Json:
        """The answer in one piece."""


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
