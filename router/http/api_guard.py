"""Around every route: who asks, under which id, and that every failure is answered. ASGI, made by `api.py`.

Leaves in the request's state: `request_id`, and `api_key` (None where no key is needed).
"""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.http.api_errors import api_error
from router.http.auth import PROBES, Authenticator

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")  # what may come back in a header


class Guard:
    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(headers.get("x-request-id"))
        state["api_key"] = None
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = state["request_id"]
            await send(message)

        try:
            if scope["path"] not in PROBES:
                state["api_key"] = self._authenticator.check(headers.get("authorization"))
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("the client of request %s left", state["request_id"])
        except Exception as error:
            if started:
                raise  # nothing can be said any more; the server closes the connection
            await api_error(error, state["request_id"]).response()(scope, receive, send_with_id)


def _request_id(given: str | None) -> str:
    return given if given is not None and _LABEL.match(given) else uuid.uuid4().hex
