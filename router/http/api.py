"""The HTTP endpoint as one ASGI app over the models of a router. Routes only: what they do lives in the files beside.

Bodies are parsed by the routes themselves, so that FastAPI's own 422 never appears; `api_guard.py` turns every
error into OpenAI's shape. Knows no Ray and no sockets: `http_server.py` serves it.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from router.http.api_config import ApiConfig
from router.http.api_errors import api_error
from router.http.api_guard import Guard
from router.http.auth import Authenticator
from router.http.catalog import Catalog
from router.http.direct_routes import DirectRoutes
from router.http.endpoint import Endpoint
from router.http.explain_route import explain_routes
from router.http.generation_routes import generation_handlers, generation_routes
from router.http.service_routes import model_routes, operator_routes, probe_routes, token_routes


def create_app(catalog: Catalog, config: ApiConfig) -> ASGIApp:
    """The app holds no resources: routers and server are closed by whoever made them."""
    authenticator = Authenticator(config.keys, config.secrets)
    endpoint = Endpoint(catalog, config, authenticator)
    app = FastAPI(title="Trunkline", version=config.version, docs_url=None, redoc_url=None)
    for routes in (
        generation_routes,
        model_routes,
        token_routes,
        operator_routes,
        explain_routes,
        probe_routes,
    ):
        app.include_router(routes(endpoint))
    app.add_exception_handler(HTTPException, _answer_routing_error)
    app.add_middleware(Guard, authenticator=authenticator)
    return DirectRoutes(generation_handlers(endpoint), authenticator, rest=app)


async def _answer_routing_error(request: Request, error: Exception) -> Response:
    """An unknown route or method: Starlette would answer in a shape of its own."""
    return api_error(error, request.state.request_id).response()
