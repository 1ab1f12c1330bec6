"""Parameters that clients know and this server does not serve. Asked by `openai_types.py` for every body.

A value that changes nothing (null, the default) passes: clients send those unasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import InvalidRequest

_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_IDLE: Mapping[str, tuple[Any, ...]] = {  # parameter -> values beside `_NOTHING` that change nothing
    # constrained output and tools
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    # scoring
    "logprob_token_ids": (),
    "return_prompt_text": (),
    # other ways to decode
    "suffix": (),
    "use_beam_search": (),
    "length_penalty": (1, 1.0),
    "logits_processors": (),
    "repetition_detection": (),
    "thinking_token_budget": (),
    "prediction": (),
    # prompts
    "prompt_embeds": (),
    "chat_template": (),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    # cache
    "prompt_cache_retention": ("in-memory", "in_memory"),
    "kv_transfer_params": (),
    "vllm_xargs": (),
}


def refuse_unserved(fields: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for the first field that asks for something that is not there."""
    for name, value in fields.items():
        idle = _IDLE.get(name)
        if idle is None or _is_one_of(value, _NOTHING) or _is_one_of(value, idle):
            continue
        raise InvalidRequest(f"{name} is not served by this version: leave it out", param=name)


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Equal and of one type: 0 is a value where False is none."""
    return any(type(value) is type(other) and value == other for other in values)
