"""How the controller calls actors: awaiting Ray's references, and the bounds that every actor of ours is given."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import ObjectRef

# Each controller that lived has left one call of `run` waiting in every actor that it watched.
MAX_CONCURRENCY = 32
ADOPT_TIMEOUT_S = 10.0  # for a running actor to answer a new controller


async def answer(reference: ObjectRef[Any]) -> Any:
    """The result of an actor's method, on any event loop; raises what it raised."""
    return await asyncio.wrap_future(reference.future())
