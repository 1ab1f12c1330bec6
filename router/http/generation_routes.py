"""POST `/v1/completions` and `/v1/chat/completions`: from a request's bytes to the answer that will be sent."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from protocol.errors import InvalidRequest
from router.http.answer import Answer, AnswerHead, Extras
from router.http.answer_response import AnswerResponse, StreamStyle
from router.http.chat import ChatAnswer, chat_prompt
from router.http.completions import CompletionAnswer, completion_prompts
from router.http.delta import Prompt
from router.http.direct_routes import Handler
from router.http.endpoint import Endpoint
from router.http.generate import Asked, Generations
from router.http.openai_types import ChatBody, CompletionBody, GenerationBody, parse_body
from router.http.request_body import read_body
from router.http.route_schemas import takes
from router.http.serving import Serving

COMPLETIONS, CHAT_COMPLETIONS = "/v1/completions", "/v1/chat/completions"


def generation_handlers(endpoint: Endpoint) -> Mapping[str, Handler]:
    return {COMPLETIONS: partial(_complete, endpoint), CHAT_COMPLETIONS: partial(_chat, endpoint)}


def generation_routes(endpoint: Endpoint) -> APIRouter:
    """The same as documented routes."""
    routes = APIRouter()

    @routes.post(COMPLETIONS, openapi_extra=takes(CompletionBody))
    async def completions(request: Request) -> Response:
        return await _complete(endpoint, request)

    @routes.post(CHAT_COMPLETIONS, openapi_extra=takes(ChatBody))
    async def chat_completions(request: Request) -> Response:
        return await _chat(endpoint, request)

    return routes


async def _complete(endpoint: Endpoint, request: Request) -> Response:
    arrived_at = time.monotonic()
    body = parse_body(CompletionBody, await read_body(request, endpoint.config.max_body_bytes))
    style = _style(body)
    serving = endpoint.pick(request, body)
    prompts = await completion_prompts(serving, body, endpoint.config.max_sequences)
    head = _head(serving, request, body, "cmpl")
    answer = CompletionAnswer(head, serving.tokenizer, prompts, _extras(body, body.logprobs))
    asked = _asked(endpoint, request, body, arrived_at)
    return _response(serving, asked, prompts, answer, style, request)


async def _chat(endpoint: Endpoint, request: Request) -> Response:
    arrived_at = time.monotonic()
    body = parse_body(ChatBody, await read_body(request, endpoint.config.max_body_bytes))
    style = _style(body)
    serving = endpoint.pick(request, body)
    asked = _asked(endpoint, request, body, arrived_at)
    prompt = await chat_prompt(serving, body, asked.isolation)
    head = _head(serving, request, body, "chatcmpl")
    answer = ChatAnswer(head, serving.tokenizer, [prompt], _extras(body, prompt.sampling.logprobs))
    return _response(serving, asked, [prompt], answer, style, request)


def _style(body: GenerationBody) -> StreamStyle | None:
    if body.stream_options is not None and not body.streams:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
    if body.streams and body.prompt_logprobs:
        raise InvalidRequest(
            "prompt_logprobs other than 0 do not come in a stream: leave out stream", param="prompt_logprobs"
        )
    return StreamStyle(body.includes_usage, body.continuous_usage) if body.streams else None


def _extras(body: GenerationBody, logprobs: int | None) -> Extras:
    return Extras(
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


def _head(serving: Serving, request: Request, body: GenerationBody, prefix: str) -> AnswerHead:
    """A client's own id is a label: it comes back, and means nothing inside."""
    if body.request_id is not None:
        request.state.request_id = body.request_id
    label = request.state.request_id
    name = label if label.startswith(f"{prefix}-") else f"{prefix}-{label}"
    return AnswerHead(name, int(time.time()), serving.served.name)


def _asked(endpoint: Endpoint, request: Request, body: GenerationBody, arrived_at: float) -> Asked:
    tenant = endpoint.tenant(request)
    return Asked(
        request_id=uuid.uuid4().hex,
        isolation=endpoint.isolation(request, body),
        affinity=body.prompt_cache_key,
        priority=tenant.priority(body.priority),
        tenant=tenant.tenant_id,
        weight=tenant.weight,
        deadline_s=endpoint.config.deadline_s,
        arrived_at=arrived_at,
    )


def _response(
    serving: Serving,
    asked: Asked,
    prompts: list[Prompt],
    answer: Answer,
    style: StreamStyle | None,
    request: Request,
) -> Response:
    generations = Generations(serving.router, serving.tokenizer, serving.metrics, prompts, asked)
    return AnswerResponse(generations, answer, style, request.state.request_id)
