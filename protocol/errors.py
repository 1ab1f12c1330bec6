"""The one tree of errors that users can cause or meet, each with its HTTP status and OpenAI code.

    TrunklineError                 500  internal_error
    ├── InvalidRequest             400  invalid_value
    │   ├── ContextLengthExceeded  400  context_length_exceeded
    │   └── UnsupportedModel       400  unsupported_model
    ├── InvalidApiKey              401  invalid_api_key
    ├── NotFound                   404  not_found
    │   └── ModelNotFound          404  model_not_found
    ├── DeadlineExceeded           408  timeout
    ├── BodyTooLarge               413  body_too_large
    ├── Overloaded                 429  overloaded
    ├── NoReplica                  503  no_replica
    ├── Draining                   503  draining
    ├── ReplicaLost                503  replica_lost
    │   └── FatalRequest           500  fatal_request     sent again it would end more replicas
    └── ProtocolError              500  protocol_error    a peer spoke nonsense; its connection ends

Raised everywhere, turned into a response in one place (`router/http/api.py`), carried across a socket by `Rejected`.
A message is a sentence that says what to do. Invariants of our own are asserts, not errors.
"""

from __future__ import annotations

from typing import ClassVar


class TrunklineError(Exception):
    """Base of the tree. `param` names the request's field at fault, `retry_after_s` asks the client to wait."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "internal_error"  # OpenAI's `type`

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(TrunklineError, ValueError):
    status, code, kind = 400, "invalid_value", "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class UnsupportedModel(InvalidRequest):
    code = "unsupported_model"


class InvalidApiKey(TrunklineError):
    status, code, kind = 401, "invalid_api_key", "authentication_error"


class NotFound(TrunklineError):
    status, code, kind = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class DeadlineExceeded(TrunklineError):
    status, code, kind = 408, "timeout", "timeout_error"


class BodyTooLarge(TrunklineError):
    status, code, kind = 413, "body_too_large", "invalid_request_error"


class Overloaded(TrunklineError):
    status, code, kind = 429, "overloaded", "rate_limit_error"


class NoReplica(TrunklineError):
    status, code, kind = 503, "no_replica", "service_unavailable_error"


class Draining(TrunklineError):
    status, code, kind = 503, "draining", "service_unavailable_error"


class ReplicaLost(TrunklineError):
    status, code, kind = 503, "replica_lost", "service_unavailable_error"


class FatalRequest(ReplicaLost):
    status, code, kind = 500, "fatal_request", "internal_error"


class ProtocolError(TrunklineError):
    code, kind = "protocol_error", "internal_error"


def _tree(root: type[TrunklineError]) -> list[type[TrunklineError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def error_from_code(code: str, message: str, param: str | None = None) -> TrunklineError:
    """The error that a peer named by its code; an unknown code is an internal error of the peer's."""
    by_code = {error.code: error for error in reversed(_tree(TrunklineError))}  # a base before its heirs
    return by_code.get(code, TrunklineError)(message, param=param)
