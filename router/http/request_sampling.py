"""From a request's body to `SamplingParams`: defaults filled in, lengths fitted to the context, a seed drawn.

Order of defaults: the request, the model's `generation_config.json`, then `SamplingParams`' own. Called by
`completions.py` and `chat.py`; knows no text and no HTTP.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel
from protocol.sampling import SamplingParams
from router.http.openai_types import GenerationBody

_COMPLETION_MAX_TOKENS = 16
_MAX_BIAS = 100.0
_SEED_BITS = 63
_PLAIN_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "bad_words",
    "truncate_prompt_tokens",
    "truncation_side",
)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model's authors want where a request says nothing. None: nothing said here either."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_directory(cls, directory: Path) -> SamplingDefaults:
        """From `generation_config.json`, if there is one. Raises UnsupportedModel for values that make no sense."""
        file = directory / "generation_config.json"
        if not file.is_file():
            return cls()
        try:
            config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            named = {name: config.get(name) for name in cls.__dataclass_fields__}
            SamplingParams(**{name: value for name, value in named.items() if value is not None})
        except (ValueError, TypeError, AttributeError) as error:
            raise UnsupportedModel(f"{file} cannot be used: {error}") from error
        return cls(**named)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request must fit into."""

    context_tokens: int
    vocab_size: int


def sampling_params(
    body: GenerationBody,
    defaults: SamplingDefaults,
    bounds: Bounds,
    *,
    num_prompt_tokens: int,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    bad_word_ids: tuple[tuple[int, ...], ...] = (),
    scores_only: bool = False,
) -> SamplingParams:
    """`max_tokens` None: the rest of the context; 0 is for a prompt that is only scored.

    Raises InvalidRequest and ContextLengthExceeded.
    """
    chosen = {name: getattr(body, name) for name in _PLAIN_FIELDS}
    for name in SamplingDefaults.__dataclass_fields__:
        chosen[name] = chosen[name] if chosen[name] is not None else getattr(defaults, name)
    if chosen["top_k"] is not None:
        chosen["top_k"] = min(chosen["top_k"], bounds.vocab_size)  # no more can be told apart
    return SamplingParams(
        **{name: value for name, value in chosen.items() if value is not None},
        max_tokens=_fitting(
            num_prompt_tokens, max_tokens, bounds.context_tokens, least=0 if scores_only else 1
        ),
        seed=secrets.randbits(_SEED_BITS) if body.seed is None else body.seed,
        stop_token_ids=_known_ids(body.stop_token_ids, "stop_token_ids", bounds.vocab_size),
        allowed_token_ids=_allowed_ids(body.allowed_token_ids, bounds.vocab_size),
        logit_bias=_bias(body.logit_bias, bounds.vocab_size),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        bad_word_ids=bad_word_ids,
    )


def completion_max_tokens(body: GenerationBody) -> int:
    return _COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest for an id that the model has no embedding for."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        raise InvalidRequest(f"{param}: token ids must be between 0 and {vocab_size - 1}", param=param)


def _fitting(num_prompt_tokens: int, max_tokens: int | None, context_tokens: int, least: int) -> int:
    rest = context_tokens - num_prompt_tokens
    if max_tokens is not None and max_tokens < least:
        raise InvalidRequest(f"max_tokens must be at least {least}, not {max_tokens}", param="max_tokens")
    if rest < (1 if max_tokens is None else max_tokens):
        wanted = "" if max_tokens is None else f" and max_tokens {max_tokens}"
        raise ContextLengthExceeded(
            f"this model's context is {context_tokens} tokens, but the prompt has {num_prompt_tokens}{wanted}: "
            "shorten the prompt or ask for fewer tokens",
            param="max_tokens" if rest > 0 else "prompt",
        )
    return rest if max_tokens is None else max_tokens


def _known_ids(token_ids: list[int] | None, param: str, vocab_size: int) -> tuple[int, ...]:
    check_token_ids(token_ids or [], vocab_size, param)
    return tuple(dict.fromkeys(token_ids or ()))


def _allowed_ids(token_ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    if token_ids == []:
        raise InvalidRequest("allowed_token_ids must not be empty", param="allowed_token_ids")
    return _known_ids(token_ids, "allowed_token_ids", vocab_size)


def _bias(bias: Mapping[str, float] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    return tuple(_bias_entry(key, value, vocab_size) for key, value in (bias or {}).items())


def _bias_entry(key: str, value: float, vocab_size: int) -> tuple[int, float]:
    if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) >= vocab_size:
        raise InvalidRequest(
            f"logit_bias: {key[:40]!r} is no token id between 0 and {vocab_size - 1}", param="logit_bias"
        )
    if not math.isfinite(value):
        raise InvalidRequest("logit_bias values must be finite numbers", param="logit_bias")
    return int(key), max(-_MAX_BIAS, min(_MAX_BIAS, value))
