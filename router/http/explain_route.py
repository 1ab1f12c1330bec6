"""POST `/admin/route/explain`: what the router would do with a request's body now, and what each replica would cost.

A dry run: the body goes the way of a real one, through template and tokenizer to digests and columns, and stops there.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from protocol.tokens import pack_tokens
from router.http.chat import chat_prompt
from router.http.completions import completion_prompts
from router.http.delta import Prompt
from router.http.openai_types import ChatBody, CompletionBody, GenerationBody, parse_body
from router.http.request_body import read_body
from router.http.route_schemas import takes
from router.http.serving import Serving
from router.http.sse import json_bytes
from router.requests.routed_request import RoutedRequest
from router.routing.explanation import Explanation


def explain_routes(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post("/admin/route/explain", openapi_extra=takes(CompletionBody))
    async def explain(request: Request) -> Response:
        """Takes a completion's body, or a chat's, known by its messages."""
        body, prompts = await _prompts(serving, request)
        explained = [_explain(serving, request, body, prompt) for prompt in prompts]
        return Response(json_bytes({"prompts": explained}), media_type="application/json")

    return routes


async def _prompts(serving: Serving, request: Request) -> tuple[GenerationBody, list[Prompt]]:
    data = await read_body(request, serving.config.max_body_bytes)
    if _is_chat(data):
        chat = parse_body(ChatBody, data)
        isolation = serving.authenticator.isolation(request.state.api_key, chat.cache_salt)
        return chat, [await chat_prompt(serving, chat, isolation)]
    completion = parse_body(CompletionBody, data)
    return completion, await completion_prompts(serving, completion)


def _is_chat(data: bytes) -> bool:
    """What is no JSON is refused by whoever parses it."""
    try:
        body = json.loads(data)
    except ValueError:
        return False
    return isinstance(body, dict) and "messages" in body


def _explain(serving: Serving, request: Request, body: GenerationBody, prompt: Prompt) -> dict[str, Any]:
    routed = RoutedRequest(
        request_id="explain",
        token_ids=pack_tokens(prompt.token_ids),
        sampling=prompt.sampling,
        isolation=serving.authenticator.isolation(request.state.api_key, body.cache_salt),
        affinity=body.prompt_cache_key,
        priority=body.priority or 0,
    )
    return _explanation_json(serving.router.explain(routed))


def _explanation_json(explanation: Explanation) -> dict[str, Any]:
    decision = explanation.decision
    return {
        "prompt_tokens": explanation.num_prompt_tokens,
        "replica": decision.replica,
        "reason": decision.reason.value,
        "matched_tokens": decision.matched_tokens,
        "best_matched_tokens": decision.best_matched_tokens,
        "price_of_a_copy": explanation.price,
        "utilization": explanation.utilization,
        "backlog_s": explanation.backlog_s,
        "replicas": [
            {
                **dataclasses.asdict(terms),
                "cost_s": terms.cost_s,
                "index": explanation.indexes[terms.replica].name,
            }
            for terms in explanation.costs
        ],
    }
