"""Every route that generates nothing: probes, models, tokens, status, metrics, the cache's reset."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from protocol.errors import InvalidRequest
from router.http.chat import encode_chat
from router.http.endpoint import Endpoint
from router.http.metrics import CONTENT_TYPE
from router.http.openai_types import DetokenizeBody, TokenizeBody, parse_body
from router.http.request_body import read_body
from router.http.request_sampling import check_token_ids
from router.http.route_schemas import takes
from router.http.service_pages import load_json, model_json, status_json
from router.http.serving import Serving
from router.http.sse import json_bytes


def probe_routes(endpoint: Endpoint) -> APIRouter:
    """A status and nothing else: whoever asks need not have a key."""
    routes = APIRouter()

    async def liveness() -> Response:
        return Response(status_code=200)

    async def readiness() -> Response:
        return Response(status_code=200 if endpoint.catalog.ready else 503)

    for path, probe in (("/liveness", liveness), ("/readiness", readiness), ("/health", readiness)):
        routes.add_api_route(path, probe, methods=["GET"])
        routes.add_api_route(path, probe, methods=["HEAD"], include_in_schema=False)
    return routes


def model_routes(endpoint: Endpoint) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> Response:
        endpoint.catalog.check_ready()
        return _json({"object": "list", "data": [described(name) for name in endpoint.catalog.names]})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        endpoint.catalog.check_ready()
        return _json(described(name))

    def described(name: str) -> dict[str, Any]:
        serving = endpoint.catalog.current(name)
        return model_json(name, serving.served.source, endpoint.config.created, serving.context_tokens)

    return routes


def token_routes(endpoint: Endpoint) -> APIRouter:
    routes = APIRouter()

    @routes.post("/tokenize", openapi_extra=takes(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        body = parse_body(TokenizeBody, await read_body(request, endpoint.config.max_body_bytes))
        return _json(await _tokenized(endpoint.catalog.pick(body.model), body))

    @routes.post("/detokenize", openapi_extra=takes(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        body = parse_body(DetokenizeBody, await read_body(request, endpoint.config.max_body_bytes))
        serving = endpoint.catalog.pick(body.model)
        check_token_ids(body.tokens, serving.tokenizer.vocab_size, "tokens")
        return _json({"prompt": serving.tokenizer.decode(body.tokens, skip_special_tokens=False)})

    return routes


def operator_routes(endpoint: Endpoint) -> APIRouter:
    routes = APIRouter()

    @routes.get("/status")
    async def status() -> Response:
        return _json(status_json(endpoint.catalog.status(), endpoint.config.version))

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(endpoint.catalog.metrics.page(), media_type=CONTENT_TYPE)

    @routes.get("/load")
    async def load() -> Response:
        return _json(load_json(endpoint.catalog.status()))

    @routes.get("/version")
    async def version() -> Response:
        return _json({"version": endpoint.config.version})

    @routes.get("/ping")
    async def ping() -> Response:
        return Response(status_code=200)

    @routes.post("/reset_prefix_cache")
    async def reset_prefix_cache(model: str | None = None) -> Response:
        """Of all models, or of the one that the query names."""
        blocks_in_use = await endpoint.catalog.reset_prefix_cache(model)
        done = blocks_in_use == 0
        return _json({"reset": done, "blocks_in_use": blocks_in_use}, 200 if done else 409)

    return routes


async def _tokenized(serving: Serving, body: TokenizeBody) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if body.prompt is None:
        token_ids = list(await encode_chat(serving, body))
    else:
        token_ids = await serving.encode(body.prompt, body.add_special_tokens is not False)
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": serving.context_tokens,
        "tokens": token_ids,
    }
    if body.return_token_strs:
        answer["token_strs"] = [serving.tokenizer.token_text(token_id) for token_id in token_ids]
    return answer


def _json(value: Any, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")
