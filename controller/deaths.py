"""Ray's errors as sentences: why an actor died, and whether starting it again can help."""

from __future__ import annotations

import re

from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from controller.unit import StartFailed
from protocol.errors import InvalidRequest, NotFound

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def process_died(error: BaseException | None) -> bool:
    return isinstance(error, RayActorError)


def explain(who: str, error: BaseException | None) -> str:
    """One dead actor's last words, with its traceback where it has one."""
    if error is None:
        return f"{who} ended"
    if isinstance(error, ActorDiedError) and not error.actor_init_failed:
        return f"{who}: its process died ({_reason(str(error))})"
    return f"{who}: {_COLOUR.sub('', str(error)).strip()}"


def start_failed(who: str, error: BaseException) -> StartFailed:
    """A user's mistake stays one however often the worker is started: it is told in one sentence."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, InvalidRequest | NotFound):
        return StartFailed(cause.message, hopeless=True)
    return StartFailed(explain(who, error))


def _reason(text: str) -> str:
    """Ray's banner without what every banner says, and without its list of common causes."""
    reason = text.split("The actor is dead because", 1)[-1].split("Some common causes", 1)[0]
    reason = reason.replace("its worker process has died.", "")
    return " ".join(_COLOUR.sub("", reason).split()).rstrip(".")
