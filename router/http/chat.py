"""`/v1/chat/completions`: from its body to one prompt that can run, and from deltas to its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_LOGPROBS
from router.http.answer import Answer, Json, ending, usage_json
from router.http.delta import Delta, Prompt, Usage
from router.http.logprobs import chat_logprobs
from router.http.openai_types import ChatBody, TokenizeBody, message_dicts
from router.http.request_sampling import sampling_params
from router.http.serving import Serving
from router.text.truncation import truncated


async def chat_prompt(serving: Serving, body: ChatBody, isolation: bytes) -> Prompt:
    """Raises InvalidRequest."""
    logprobs = _num_logprobs(body)
    token_ids = await encode_chat(serving, body, isolation)
    if not token_ids:
        raise InvalidRequest("messages must not be empty", param="messages")
    bounds = serving.bounds
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    token_ids = truncated(
        token_ids,
        body.truncate_prompt_tokens,
        body.truncation_side,
        context_tokens=bounds.context_tokens,
        max_tokens=most,
    )
    sampling = sampling_params(
        body,
        serving.defaults,
        bounds,
        num_prompt_tokens=len(token_ids),
        max_tokens=most,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        bad_word_ids=await serving.bad_word_ids(body.bad_words),
    )
    return Prompt(token_ids, sampling)


async def encode_chat(
    serving: Serving, body: ChatBody | TokenizeBody, isolation: bytes = b""
) -> Sequence[int]:
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
    if body.add_special_tokens:
        return await serving.encode(text, add_special_tokens=True)
    return await serving.encode_chat(text, isolation)


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
    """Each choice's first chunk says who speaks; the answer's very first, what the client asked of the prompt."""

    def chunks(self, delta: Delta) -> Iterator[Json]:
        begins = len(self._silent) == len(self.choices)
        if self.is_first(delta):
            role = {"role": "assistant", "content": ""}
            yield self._chunk(delta, role, None, ending(None)) | (self.about_prompt(delta) if begins else {})
        logprobs = self._logprobs(delta) if delta.logprobs else None
        tokens = self.about_tokens(delta) if delta.token_ids else {}
        if delta.text or logprobs or tokens or delta.finish:
            said = {"content": delta.text} if delta.text else {}
            yield self._chunk(delta, said, logprobs, ending(delta.finish) | tokens)

    def usage_chunk(self, usage: Usage) -> Json:
        return self._object("chat.completion.chunk", []) | {"usage": usage_json(usage)}

    def whole(self, usage: Usage) -> Json:
        answer = self._object("chat.completion", [self._choice(choice.merged) for choice in self.choices])
        return answer | self.about_prompt(self.choices[0].merged) | {"usage": usage_json(usage)}

    def _choice(self, delta: Delta) -> Json:
        return {
            "index": delta.choice,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(delta),
            **ending(delta.finish),
            **self.about_tokens(delta),
        }

    def _logprobs(self, delta: Delta) -> Json | None:
        if self.extras.logprobs is None:
            return None
        return chat_logprobs(self.spelling, delta.token_ids, delta.logprobs or ())

    def _chunk(self, delta: Delta, said: Json, logprobs: Json | None, more: Json) -> Json:
        choice = {"index": delta.choice, "delta": said, "logprobs": logprobs, **more}
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
