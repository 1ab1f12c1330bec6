"""Bodies of requests, as clients of OpenAI and of vLLM write them, checked for type. Parsed by `api.py`.

Null means the default. Unknown fields are accepted; those that are known but not served are refused by name, so
that nobody believes to have got what they asked for. Ranges are `request_sampling.py`'s and `SamplingParams`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import InvalidRequest
from router.http.refused_parameters import refuse_unserved

BodyT = TypeVar("BodyT", bound="Body")

TokenIds = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIdLists = Annotated[list[TokenIds], Field(fail_fast=True)]
PRIORITY = (
    "Lower is served earlier. With API keys never earlier than the key's own class, which is the default."
)
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]  # it comes back in a header


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())

    model: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(Body):
    """What both endpoints take."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    stop: str | Texts | None = None
    stop_token_ids: TokenIds | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Texts | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    user: str | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: RequestId | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31, description=PRIORITY)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.continuous_usage_stats)


class CompletionBody(GenerationBody):
    prompt: str | TokenIds | Texts | TokenIdLists
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


class ContentPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """Other fields (a name, a tool's answer) go to the chat template as they are."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    role: Annotated[str, Field(min_length=1)]
    content: str | list[ContentPart | str] | None = None


class ChatBody(GenerationBody):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None


class TokenizeBody(Body):
    """`prompt`, or `messages` with what goes with them."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeBody(Body):
    tokens: TokenIds


def parse_body(kind: type[BodyT], data: bytes) -> BodyT:
    """Raises InvalidRequest, with `param` naming the field at fault."""
    try:
        body = kind.model_validate_json(data)
    except ValidationError as error:
        raise _invalid(kind, error) from None
    if issubclass(kind, GenerationBody):
        refuse_unserved(body.model_extra or {})
    return body


def message_dicts(messages: list[ChatMessage]) -> list[Mapping[str, Any]]:
    """For the chat template. Raises InvalidRequest for content that is not text."""
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    for place, message in enumerate(messages):
        parts = message.content if isinstance(message.content, list) else []
        if not all(
            isinstance(part, str) or (part.type == "text" and part.text is not None) for part in parts
        ):
            raise InvalidRequest(
                "only content parts of type 'text' are served: this server takes no images, audio or files",
                param=f"messages[{place}].content",
            )
    return [_message_dict(message) for message in messages]


def _message_dict(message: ChatMessage) -> dict[str, Any]:
    """What the client gave, and no more. Most messages are a text, and long chats have hundreds of them."""
    if not isinstance(message.content, str):
        return message.model_dump(exclude_unset=True)
    return {"role": message.role, "content": message.content, **(message.model_extra or {})}


def _invalid(kind: type[BaseModel], error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['msg']}")
    path = first["loc"]
    if not path:
        return InvalidRequest("the body must be a JSON object")
    param = _spelled(path)
    if first["type"] == "missing":
        return InvalidRequest(f"{param} is required", param=param)
    expected = _EXPECTED.get(str(path[0])) if len(path) > 1 or path[0] in _EXPECTED else None
    problem = f"must be {expected}" if expected else first["msg"][:1].lower() + first["msg"][1:]
    return InvalidRequest(f"{param}: {problem}", param=param)


def _spelled(path: tuple[int | str, ...]) -> str:
    """`messages[0].content`, without the names of a union's branches."""
    spelled = str(path[0])
    if spelled in _EXPECTED:
        return spelled
    for step in path[1:]:
        if isinstance(step, int):
            spelled += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "ContentPart"):
            spelled += f".{step}"
    return spelled


_EXPECTED: Mapping[str, str] = {
    "prompt": "a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "stop": "a string or a list of strings",
    "logit_bias": "an object of token ids and numbers",
}
