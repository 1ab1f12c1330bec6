"""Errors as OpenAI's clients expect them, for a whole response and for one inside a stream."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from protocol.errors import FatalRequest, TrunklineError
from router.http.sse import json_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiError:
    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        return Response(json_bytes(self.body), self.status, self.headers, "application/json")


def api_error(error: Exception, request_id: str) -> ApiError:
    """What the client is told. An error of ours is logged in full and told as little of as possible."""
    if isinstance(error, TrunklineError):
        return _told(error)
    if isinstance(error, HTTPException):
        return _routing_error(error)
    logger.error("request %s failed", request_id, exc_info=error)
    message = f"the server failed on this request; its log has the reason under {request_id}"
    return ApiError(500, _body(message, TrunklineError.kind, None, TrunklineError.code))


def _told(error: TrunklineError) -> ApiError:
    headers = {}
    if error.retry_after_s is not None or error.status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if isinstance(error, FatalRequest):
        headers["x-should-retry"] = "false"  # OpenAI's clients send it again otherwise
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return ApiError(error.status, _body(error.message, error.kind, error.param, error.code), headers)


def _routing_error(error: HTTPException) -> ApiError:
    """No such route, or not with this method."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = _body(str(error.detail), "invalid_request_error", None, code)
    return ApiError(error.status_code, body, dict(error.headers or {}))


def _body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
