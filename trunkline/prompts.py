"""The forms in which a prompt may be given to the offline library, brought to one."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.errors import InvalidRequest
from router.text.tokenizer import Tokenizer

TokenIds = Sequence[int]
Prompt = str | TokenIds | Mapping[str, Any]  # a mapping as vLLM's: {"prompt": …} or {"prompt_token_ids": […]}


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    text: str | None
    token_ids: array[int]


def tokenize_prompts(prompts: Prompt | Sequence[Prompt], tokenizer: Tokenizer) -> list[TokenizedPrompt]:
    """One prompt or several, each a string, token ids, or a mapping with either. Raises InvalidRequest."""
    single = isinstance(prompts, str | Mapping) or _is_token_ids(prompts)
    return [_tokenize(prompt, tokenizer) for prompt in ([prompts] if single else prompts)]


def _is_token_ids(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(each, int) for each in value)


def _tokenize(prompt: object, tokenizer: Tokenizer) -> TokenizedPrompt:
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        token_ids, text = array("i", tokenizer.encode(prompt)), prompt
    elif _is_token_ids(prompt):
        token_ids, text = array("i", prompt), None  # type: ignore[call-overload]
    else:
        raise InvalidRequest(
            "a prompt is a string or a non-empty list of token ids, not " + repr(prompt)[:60], param="prompt"
        )
    if not token_ids:
        raise InvalidRequest("the prompt is empty: give at least one token", param="prompt")
    return TokenizedPrompt(text, token_ids)
