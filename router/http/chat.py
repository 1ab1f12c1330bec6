"""`/v1/chat/completions`: from its body to one prompt that can run, and from deltas to its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_LOGPROBS
from router.http.answer import Answer, AnswerHead, Json, ending, usage_json
from router.http.generate import Delta, Prompt, Usage
from router.http.logprobs import chat_logprobs
from router.http.openai_types import ChatBody, TokenizeBody, message_dicts
from router.http.request_sampling import sampling_params
from router.http.serving import Serving
from router.text.tokenizer import Tokenizer


async def chat_prompt(serving: Serving, body: ChatBody) -> Prompt:
    """Raises InvalidRequest."""
    serving.check_model(body.model)
    logprobs = _num_logprobs(body)
    token_ids = await encode_chat(serving, body)
    if not token_ids:
        raise InvalidRequest("messages must not be empty", param="messages")
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = sampling_params(
        body,
        serving.config.defaults,
        serving.bounds,
        num_prompt_tokens=len(token_ids),
        max_tokens=most,
        logprobs=logprobs,
    )
    return Prompt(token_ids, sampling)


async def encode_chat(serving: Serving, body: ChatBody | TokenizeBody) -> list[int]:
    """Messages through the chat template to token ids; the template writes the special tokens itself."""
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message exclude each other",
            param="continue_final_message",
        )
    text = serving.tokenizer.apply_chat_template(
        message_dicts(body.messages or []),
        tools=body.tools if isinstance(body, TokenizeBody) else None,
        add_generation_prompt=not continues and body.add_generation_prompt is not False,
        continue_final_message=continues,
        variables=_variables(body),
    )
    return await serving.encode(text, bool(body.add_special_tokens))


def _variables(body: ChatBody | TokenizeBody) -> Mapping[str, Any]:
    documents = body.documents if isinstance(body, ChatBody) else None
    return {**(body.chat_template_kwargs or {}), **({"documents": documents} if documents else {})}


def _num_logprobs(body: ChatBody) -> int | None:
    top = body.top_logprobs or 0
    if not 0 <= top <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs must be between 0 and {MAX_LOGPROBS}, not {top}", param="top_logprobs"
        )
    if top and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return top if body.logprobs else None


class ChatAnswer(Answer):
    def __init__(
        self, head: AnswerHead, tokenizer: Tokenizer, num_choices: int, *, with_logprobs: bool
    ) -> None:
        super().__init__(head, tokenizer, num_choices)
        self._with_logprobs = with_logprobs
        self._silent = set(range(num_choices))  # choices whose first chunk is still to come

    def chunks(self, delta: Delta) -> Iterator[Json]:
        if delta.choice in self._silent:
            self._silent.discard(delta.choice)
            yield self._chunk(delta.choice, {"role": "assistant", "content": ""}, None, ending(None))
        logprobs = None
        if self._with_logprobs and delta.logprobs:
            logprobs = chat_logprobs(self.tokenizer, delta.token_ids, delta.logprobs)
        if delta.text or logprobs or delta.finish:
            said = {"content": delta.text} if delta.text else {}
            yield self._chunk(delta.choice, said, logprobs, ending(delta.finish))

    def usage_chunk(self, usage: Usage) -> Json:
        return self._object("chat.completion.chunk", []) | {"usage": usage_json(usage)}

    def whole(self, usage: Usage) -> Json:
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(self.tokenizer, choice.token_ids, choice.logprobs)
                if self._with_logprobs
                else None,
                **choice.ending,
            }
            for choice in self.choices
        ]
        return self._object("chat.completion", choices) | {"usage": usage_json(usage)}

    def _chunk(self, index: int, delta: Json, logprobs: Json | None, end: Json) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, **end}
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: Sequence[Json]) -> Json:
        head = self.head
        return {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "choices": list(choices),
        }
