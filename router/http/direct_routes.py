"""The way of the requests that generate: past FastAPI, straight from the guard to their handler. Made by `api.py`.

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

Handler = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """`handlers` take the POSTs of their paths; `rest` takes whatever else comes."""

    def __init__(self, handlers: Mapping[str, Handler], authenticator: Authenticator, rest: ASGIApp) -> None:
        self._guarded = {path: Guard(_app(each), authenticator) for path, each in handlers.items()}
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        app = self._guarded.get(scope["path"], self._rest) if post else self._rest
        await app(scope, receive, send)


def _app(handler: Handler) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)

    return app
