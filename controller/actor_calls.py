"""How the controller calls actors: awaiting Ray's references, and the bounds that every actor of ours is given."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray import ObjectRef

from controller.names import NAMESPACE

# Each controller that lived has left one call of `run` waiting in every actor that it watched.
MAX_CONCURRENCY = 32
ADOPT_TIMEOUT_S = 10.0  # for a running actor to answer a new controller


def detached(actor_class: type, name: str, **options: Any) -> Any:
    """A factory of one named actor, which outlives whoever makes it and is not restarted by Ray unless asked."""
    common: dict[str, Any] = {"max_restarts": 0, "max_concurrency": MAX_CONCURRENCY, "num_cpus": 0}
    wrap: Any = ray.remote
    return wrap(actor_class).options(
        name=name, namespace=NAMESPACE, lifetime="detached", **{**common, **options}
    )


async def answer(reference: ObjectRef[Any]) -> Any:
    """The result of an actor's method, on any event loop; raises what it raised."""
    return await asyncio.wrap_future(reference.future())
