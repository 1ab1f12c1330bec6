"""Logprobs in the shapes that clients of OpenAI and of vLLM know. JSON has no infinity: everything has a floor.

Called by `completions.py` and `chat.py`. None among logprobs is the prompt's first token: nothing predicted it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from protocol.messages import TokenLogprob
from router.text.tokenizer import Tokenizer

_FLOOR = -9999.0


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tokens are written where a client reads them: as text, or as `token_id:7`, which tells all of them apart."""

    tokenizer: Tokenizer
    as_ids: bool = False

    def text(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self.as_ids else self.tokenizer.token_text(token_id)


def completion_logprobs(
    spelling: Spelling,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
    offsets: Sequence[int],
) -> dict[str, Any]:
    """Columns, one entry a token."""
    texts = [spelling.text(token_id) for token_id in token_ids]
    return {
        "tokens": texts,
        "token_logprobs": [None if entry is None else _floored(entry.logprob) for entry in logprobs],
        "top_logprobs": [
            None if entry is None else _by_text(spelling, text, entry)
            for text, entry in zip(texts, logprobs, strict=True)
        ],
        "text_offset": list(offsets),
    }


def chat_logprobs(
    spelling: Spelling, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
) -> dict[str, Any]:
    return {
        "content": [
            _chat_entry(spelling, token_id, entry.logprob)
            | {"top_logprobs": [_chat_entry(spelling, other, value) for other, value in entry.top]}
            for token_id, entry in zip(token_ids, logprobs, strict=True)
        ]
    }


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
) -> list[dict[str, dict[str, Any]] | None]:
    """One entry a prompt token: its own and the likeliest ones' logprob, rank and text, by token id."""
    return [
        None if entry is None else _by_id(tokenizer, token_id, entry)
        for token_id, entry in zip(token_ids, logprobs, strict=True)
    ]


def of_prompt(
    num_tokens: int, logprobs: Sequence[TokenLogprob] | None, width: int
) -> list[TokenLogprob | None]:
    """One entry a prompt token, with no more than `width` alternatives; all None where nothing was scored."""
    if logprobs is None:
        return [None] * num_tokens
    return [None, *(replace(each, top=each.top[:width]) for each in logprobs)]


def _by_text(spelling: Spelling, text: str, entry: TokenLogprob) -> dict[str, float]:
    """Of tokens that read alike (parts of characters do) the likeliest counts: the best of all is always there."""
    values = {text: _floored(entry.logprob)}
    for token_id, logprob in entry.top:
        name, value = spelling.text(token_id), _floored(logprob)
        values[name] = max(value, values.get(name, value))
    return values


def _by_id(tokenizer: Tokenizer, token_id: int, entry: TokenLogprob) -> dict[str, dict[str, Any]]:
    ranked = [(token_id, entry.logprob, entry.rank)]
    ranked += [
        (other, value, rank) for rank, (other, value) in enumerate(entry.top, start=1) if other != token_id
    ]
    return {
        str(each): {"logprob": _floored(value), "rank": rank, "decoded_token": tokenizer.token_text(each)}
        for each, value, rank in ranked
    }


def _chat_entry(spelling: Spelling, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": spelling.text(token_id),
        "logprob": _floored(logprob),
        "bytes": list(spelling.tokenizer.token_bytes(token_id)),
    }


def _floored(logprob: float) -> float:
    return logprob if logprob > _FLOOR else _FLOOR  # NaN compares false, so it is floored too
