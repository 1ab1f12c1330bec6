"""Chat bodies of a given size, as a client with a history sends them, or all new every time."""

from __future__ import annotations

import json
import random
from itertools import count

from router_parts.deployment import MODEL

TEXT = (
    "the quick brown fox jumps over a lazy dog while seven small birds sing in an old apple tree and "
    "the river runs slowly to the wide blue sea where little boats wait for wind and good weather"
)
TURN_BYTES = 400  # of one message's text
MESSAGE_BYTES = 48  # what a message has around its text, and a little more
SYSTEM_BYTES = 1024  # of the prompt that all conversations share; at most half a body


class Conversation:
    """Every body ends in a new question. `all_new`: what comes before it is new as well."""

    def __init__(
        self,
        num_bytes: int,
        seed: int = 0,
        *,
        max_tokens: int = 16,
        stream: bool = False,
        all_new: bool = False,
    ) -> None:
        self.max_tokens = max_tokens
        self._options = {"model": MODEL, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
        self._num_bytes = num_bytes
        self._dice = random.Random(seed)
        self._numbers = count(1_000_000 * seed)
        self._all_new = all_new
        self._turns = self._make_turns()

    def messages(self) -> list[dict[str, str]]:
        turns = self._make_turns() if self._all_new else self._turns
        return [*turns, _message("user", self._question())]

    def body(self) -> bytes:
        return self._encoded(self.messages())

    def _make_turns(self) -> list[dict[str, str]]:
        """Turns until only the question is missing to the body's size."""
        dice = self._dice if self._all_new else random.Random(0)
        turns = [_message("system", _text(dice, min(SYSTEM_BYTES, self._num_bytes // 2)))]
        room = self._num_bytes - len(self._encoded([*turns, _message("user", self._question())]))
        while room > MESSAGE_BYTES:
            role = "user" if len(turns) % 2 else "assistant"
            turns.append(_message(role, _text(self._dice, min(TURN_BYTES, room - MESSAGE_BYTES))))
            room -= len(json.dumps(turns[-1])) + len(", ")
        return turns

    def _question(self) -> str:
        return f"{next(self._numbers):010d} {_text(self._dice, min(TURN_BYTES, self._num_bytes // 4) - 11)}"

    def _encoded(self, messages: list[dict[str, str]]) -> bytes:
        return json.dumps({**self._options, "messages": messages}).encode()


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(dice: random.Random, num_characters: int) -> str:
    words = dice.choices(TEXT.split(), k=num_characters // 3)
    return " ".join(words)[:num_characters]
