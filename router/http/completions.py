"""`/v1/completions`: from its body to prompts that can run, and from deltas to its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_LOGPROBS
from router.http.answer import Answer, AnswerHead, Json, ending, usage_json
from router.http.generate import Delta, Prompt, Usage
from router.http.logprobs import completion_logprobs
from router.http.openai_types import CompletionBody
from router.http.request_sampling import check_token_ids, completion_max_tokens, sampling_params
from router.http.serving import Serving
from router.text.tokenizer import Tokenizer


async def completion_prompts(serving: Serving, body: CompletionBody) -> list[Prompt]:
    """One for each prompt of the body. Raises InvalidRequest."""
    _check(serving, body)
    given = _prompt_list(body.prompt)
    limit = serving.config.max_sequences
    if len(given) * (body.n or 1) > limit:
        raise InvalidRequest(f"prompts times n must be at most {limit}", param="prompt")
    return [await _prompt(serving, body, each) for each in given]


async def _prompt(serving: Serving, body: CompletionBody, given: str | list[int]) -> Prompt:
    if isinstance(given, str):
        text = given
        token_ids = await serving.encode(text, body.add_special_tokens is not False)
    else:
        check_token_ids(given, serving.tokenizer.vocab_size, "prompt")
        token_ids = given
        text = serving.tokenizer.decode(given) if body.echo else ""
    if not given or not token_ids:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    sampling = sampling_params(
        body,
        serving.config.defaults,
        serving.bounds,
        num_prompt_tokens=len(token_ids),
        max_tokens=completion_max_tokens(body),
        logprobs=body.logprobs,
    )
    return Prompt(token_ids, sampling, text if body.echo else "")


def _check(serving: Serving, body: CompletionBody) -> None:
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"logprobs must be between 0 and {MAX_LOGPROBS}, not {body.logprobs}", param="logprobs"
        )
    if body.echo and body.logprobs is not None:
        raise InvalidRequest("echo together with logprobs is not served by this version", param="echo")
    if body.max_tokens == 0 and body.echo:
        raise InvalidRequest(
            "max_tokens 0 (only score the prompt) is not served by this version", param="echo"
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("best_of is not served: leave it out, or set it to n", param="best_of")
    serving.check_model(body.model)


def _prompt_list(prompt: Any) -> Sequence[str | list[int]]:
    """A lone prompt and a list of them both as a list."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


class CompletionAnswer(Answer):
    """`echoes` has one text per choice, put in front of it."""

    def __init__(
        self,
        head: AnswerHead,
        tokenizer: Tokenizer,
        num_choices: int,
        *,
        with_logprobs: bool,
        echoes: Sequence[str],
    ) -> None:
        super().__init__(head, tokenizer, num_choices)
        self._with_logprobs = with_logprobs
        self._echoes = list(echoes)
        self._offsets = [0] * num_choices

    def chunks(self, delta: Delta) -> Iterator[Json]:
        text = self._echoes[delta.choice] + delta.text
        self._echoes[delta.choice] = ""
        logprobs = None
        if self._with_logprobs and delta.logprobs:
            logprobs, self._offsets[delta.choice] = completion_logprobs(
                self.tokenizer, delta.token_ids, delta.logprobs, self._offsets[delta.choice]
            )
        if text or logprobs or delta.finish:
            choice = {"index": delta.choice, "text": text, "logprobs": logprobs, **ending(delta.finish)}
            yield self._object([choice])

    def usage_chunk(self, usage: Usage) -> Json:
        return self._object([]) | {"usage": usage_json(usage)}

    def whole(self, usage: Usage) -> Json:
        choices = [
            {
                "index": choice.index,
                "text": self._echoes[choice.index] + choice.text,
                "logprobs": completion_logprobs(self.tokenizer, choice.token_ids, choice.logprobs, 0)[0]
                if self._with_logprobs
                else None,
                **choice.ending,
            }
            for choice in self.choices
        ]
        return self._object(choices) | {"usage": usage_json(usage)}

    def _object(self, choices: list[Json]) -> Json:
        head = self.head
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
        }
