"""The way of the requests that generate: past FastAPI, straight from the guard to their endpoint. Made by `api.py`.

FastAPI's matching, dependencies and middlewares cost 0.15 ms a request and five wrappers around every chunk of a
stream. It still documents these routes, and answers everything else, other methods on the same paths included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from router.http.api_guard import Guard
from router.http.auth import Authenticator

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """`endpoints` take the POSTs of their paths; `rest` takes whatever else comes."""

    def __init__(
        self, endpoints: Mapping[str, Endpoint], authenticator: Authenticator, rest: ASGIApp
    ) -> None:
        self._guarded = {path: Guard(_app(each), authenticator) for path, each in endpoints.items()}
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        app = self._guarded.get(scope["path"], self._rest) if post else self._rest
        await app(scope, receive, send)


def _app(endpoint: Endpoint) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    return app
