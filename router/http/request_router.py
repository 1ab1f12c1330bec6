"""What the HTTP endpoint needs of a router's core, which routes one version of a model.

`router.py` has it; a test's fake has it in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from protocol.messages import SequenceOutput
from router.requests.routed_request import Decision, RoutedRequest
from router.router_status import RouterCounters, RouterStatus
from router.routing.explanation import Explanation


class RunningGeneration(Protocol):
    """One request's outputs, all its sequences mixed, until the last has finished."""

    @property
    def decision(self) -> Decision: ...

    @property
    def replica(self) -> str: ...

    @property
    def more_ready(self) -> bool:
        """The next output has come already."""
        ...

    def __aiter__(self) -> AsyncIterator[SequenceOutput]: ...

    def stop(self, index: int) -> None:
        """One sequence is complete for its consumer: nothing more of it is computed."""
        ...


class RequestRouter(Protocol):
    @property
    def ready(self) -> bool: ...

    @property
    def num_accepting(self) -> int:
        """Replicas that take new requests."""
        ...

    @property
    def max_model_len(self) -> int | None: ...

    @property
    def counters(self) -> RouterCounters: ...

    def open(self, request: RoutedRequest) -> AbstractAsyncContextManager[RunningGeneration]:
        """Leaving the context cancels, at the replica, whatever has not finished."""
        ...

    def explain(self, request: RoutedRequest) -> Explanation:
        """A dry run. Raises NoReplica."""
        ...

    async def reset_prefix_cache(self) -> int: ...

    def status(self) -> RouterStatus: ...
