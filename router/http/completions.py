"""`/v1/completions`: from its body to prompts that can run, and from deltas to its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_LOGPROBS, SamplingParams
from router.http.answer import Answer, Json, ending, usage_json
from router.http.delta import Delta, Prompt, Usage
from router.http.logprobs import completion_logprobs, of_prompt
from router.http.openai_types import CompletionBody
from router.http.request_sampling import check_token_ids, completion_max_tokens, sampling_params
from router.http.serving import Serving
from router.text.token_offsets import token_offsets
from router.text.tokenizer import Tokenizer
from router.text.truncation import truncated

_REPLACEMENT = "\ufffd"
MAX_PROMPT_SCORES = (
    4_000_000  # logprobs in one answer: a context of 128k tokens with the 20 best of each fits
)


async def completion_prompts(serving: Serving, body: CompletionBody, max_sequences: int) -> list[Prompt]:
    """One for each prompt of the body. Raises InvalidRequest."""
    _check(body)
    given = _prompt_list(body.prompt)
    if len(given) * (body.n or 1) > max_sequences:
        raise InvalidRequest(f"prompts times n must be at most {max_sequences}", param="prompt")
    bad_word_ids = await serving.bad_word_ids(body.bad_words)
    return [await _prompt(serving, body, each, bad_word_ids) for each in given]


async def _prompt(
    serving: Serving,
    body: CompletionBody,
    given: str | list[int],
    bad_word_ids: tuple[tuple[int, ...], ...],
) -> Prompt:
    all_ids = await _token_ids(serving, body, given)
    bounds, max_tokens = serving.bounds, completion_max_tokens(body)
    token_ids = truncated(
        all_ids,
        body.truncate_prompt_tokens,
        body.truncation_side,
        context_tokens=bounds.context_tokens,
        max_tokens=max_tokens,
    )
    sampling = sampling_params(
        body,
        serving.defaults,
        bounds,
        num_prompt_tokens=len(token_ids),
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=_num_scored(body),
        bad_word_ids=bad_word_ids,
        scores_only=bool(body.echo),
    )
    _check_scores(sampling, len(token_ids))
    if not body.echo:
        return Prompt(token_ids, sampling)
    whole_text = given if isinstance(given, str) and len(token_ids) == len(all_ids) else None
    return Prompt(token_ids, sampling, whole_text or _decoded(serving.tokenizer, token_ids, sampling))


async def _token_ids(serving: Serving, body: CompletionBody, given: str | list[int]) -> list[int]:
    if isinstance(given, str):
        token_ids = await serving.encode(given, body.add_special_tokens is not False)
    else:
        token_ids = given
        check_token_ids(token_ids, serving.tokenizer.vocab_size, "prompt")
    if not given or not token_ids:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    return token_ids


def _decoded(tokenizer: Tokenizer, token_ids: list[int], sampling: SamplingParams) -> str:
    """The text of token ids. An unfinished character at its end belongs to the tokens that complete it."""
    text = tokenizer.decode(token_ids, sampling.skip_special_tokens)
    return text.rstrip(_REPLACEMENT) if sampling.max_tokens else text


def _check_scores(sampling: SamplingParams, num_prompt_tokens: int) -> None:
    """Every choice carries its prompt's, so a short body could ask for an answer of gigabytes."""
    if sampling.prompt_logprobs is None:
        return
    size = sampling.n * num_prompt_tokens * (sampling.prompt_logprobs + 1)
    if size > MAX_PROMPT_SCORES:
        raise InvalidRequest(
            f"n times prompt tokens times logprobs is {size}, over {MAX_PROMPT_SCORES}: ask for fewer of them",
            param="n",
        )


def _num_scored(body: CompletionBody) -> int | None:
    """Alternatives for every prompt token: asked for by name, or by an echo whose logprobs are wanted."""
    asked = (body.prompt_logprobs, body.logprobs if body.echo else None)
    return max((width for width in asked if width is not None), default=None)


def _check(body: CompletionBody) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        width = getattr(body, name)
        if width is not None and not 0 <= width <= MAX_LOGPROBS:
            raise InvalidRequest(f"{name} must be between 0 and {MAX_LOGPROBS}, not {width}", param=name)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("best_of is not served: leave it out, or set it to n", param="best_of")


def _prompt_list(prompt: Any) -> Sequence[str | list[int]]:
    """A lone prompt and a list of them both as a list."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


class CompletionAnswer(Answer):
    """An echoed prompt is part of its choices: it comes in front, with its tokens where logprobs were asked for."""

    def chunks(self, delta: Delta) -> Iterator[Json]:
        first = self.is_first(delta)
        choice = self._choice(delta, first)
        if choice["logprobs"] and not choice["logprobs"]["tokens"]:
            choice["logprobs"] = None
        optional = ("text", "logprobs", "finish_reason", "token_ids", "prompt_token_ids", "prompt_logprobs")
        if any(choice.get(name) for name in optional):
            yield self._object([choice])

    def usage_chunk(self, usage: Usage) -> Json:
        return self._object([]) | {"usage": usage_json(usage)}

    def whole(self, usage: Usage) -> Json:
        choices = [self._choice(choice.merged, first=True) for choice in self.choices]
        return self._object(choices) | {"usage": usage_json(usage)}

    def _choice(self, delta: Delta, first: bool) -> Json:
        """`first`: with what belongs in front of a choice's generated part."""
        echo = self.choices[delta.choice].prompt.echo if first else None
        return {
            "index": delta.choice,
            "text": (echo or "") + delta.text,
            "logprobs": None if self.extras.logprobs is None else self._logprobs(delta, first),
            **ending(delta.finish),
            **(self.about_prompt(delta) if first else {}),
            **self.about_tokens(delta),
        }

    def _logprobs(self, delta: Delta, first: bool) -> Json:
        """Columns of the delta's tokens, behind those of the echoed prompt."""
        prompt = self.choices[delta.choice].prompt
        begin = len(prompt.echo or "")
        offsets = [begin + offset for offset in delta.offsets]
        logprobs = list(delta.logprobs or ())
        if not first or prompt.echo is None:
            return completion_logprobs(self.spelling, delta.token_ids, logprobs, offsets)
        pieces = map(self.spelling.tokenizer.token_bytes, prompt.token_ids)
        return completion_logprobs(
            self.spelling,
            [*prompt.token_ids, *delta.token_ids],
            [*of_prompt(len(prompt.token_ids), delta.prompt_logprobs, self.extras.logprobs or 0), *logprobs],
            [*token_offsets(prompt.echo, pieces), *offsets],
        )

    def _object(self, choices: list[Json]) -> Json:
        head = self.head
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
        }
