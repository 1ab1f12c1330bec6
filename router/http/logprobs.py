"""Logprobs in the shapes that OpenAI's two endpoints give them. JSON has no infinity: everything has a floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protocol.messages import TokenLogprob
from router.text.tokenizer import Tokenizer

_FLOOR = -9999.0


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], offset: int
) -> tuple[dict[str, Any], int]:
    """Columns, one entry a token, and the text offset of the token that comes next."""
    texts = [tokenizer.token_text(token_id) for token_id in token_ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    columns = {
        "tokens": texts,
        "token_logprobs": [_floored(entry.logprob) for entry in logprobs],
        "top_logprobs": [
            {text: _floored(entry.logprob)}
            | {tokenizer.token_text(token_id): _floored(value) for token_id, value in entry.top}
            for text, entry in zip(texts, logprobs, strict=True)
        ],
        "text_offset": offsets,
    }
    return columns, offset


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
) -> dict[str, Any]:
    return {
        "content": [
            _chat_entry(tokenizer, token_id, entry.logprob)
            | {"top_logprobs": [_chat_entry(tokenizer, other, value) for other, value in entry.top]}
            for token_id, entry in zip(token_ids, logprobs, strict=True)
        ]
    }


def _chat_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": data.decode(errors="replace"), "logprob": _floored(logprob), "bytes": list(data)}


def _floored(logprob: float) -> float:
    return logprob if logprob > _FLOOR else _FLOOR  # NaN compares false, so it is floored too
