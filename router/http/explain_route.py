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
from router.http.endpoint import Endpoint
from router.http.openai_types import ChatBody, CompletionBody, GenerationBody, parse_body
from router.http.request_body import read_body
from router.http.route_schemas import takes
from router.http.serving import Serving
from router.http.sse import json_bytes
from router.requests.routed_request import RoutedRequest
from router.routing.explanation import Explanation


def explain_routes(endpoint: Endpoint) -> APIRouter:
    routes = APIRouter()

    @routes.post("/admin/route/explain", openapi_extra=takes(CompletionBody))
    async def explain(request: Request) -> Response:
        """Takes a completion's body, or a chat's, known by its messages."""
        data = await read_body(request, endpoint.config.max_body_bytes)
        body = parse_body(ChatBody, data) if _is_chat(data) else parse_body(CompletionBody, data)
        serving = endpoint.pick(request, body)
        prompts = await _prompts(endpoint, serving, request, body)
        explained = [_explain(endpoint, serving, request, body, prompt) for prompt in prompts]
        return Response(json_bytes({"prompts": explained}), media_type="application/json")

    return routes


async def _prompts(
    endpoint: Endpoint, serving: Serving, request: Request, body: ChatBody | CompletionBody
) -> list[Prompt]:
    if isinstance(body, ChatBody):
        return [await chat_prompt(serving, body, endpoint.isolation(request, body))]
    return await completion_prompts(serving, body, endpoint.config.max_sequences)


def _is_chat(data: bytes) -> bool:
    """What is no JSON is refused by whoever parses it."""
    try:
        body = json.loads(data)
    except ValueError:
        return False
    return isinstance(body, dict) and "messages" in body


def _explain(
    endpoint: Endpoint, serving: Serving, request: Request, body: GenerationBody, prompt: Prompt
) -> dict[str, Any]:
    routed = RoutedRequest(
        request_id="explain",
        token_ids=pack_tokens(prompt.token_ids),
        sampling=prompt.sampling,
        isolation=endpoint.isolation(request, body),
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
