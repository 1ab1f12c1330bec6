"""One client request as running generations: token ids go to the router, text comes back, choice by choice.

Made by `generation_routes.py`, iterated by `answer_response.py`. A request with several prompts runs as several
generations whose choices are numbered through. Owns nothing after leaving: that cancels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from protocol.tokens import pack_tokens
from router.http.delta import Delta, Prompt, Usage
from router.http.prompt_run import PromptRun
from router.http.request_metrics import RequestMetrics, RequestTiming
from router.http.request_router import RequestRouter, RunningGeneration
from router.routed_request import RoutedRequest
from router.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Asked:
    """What all prompts of one client request share."""

    request_id: str  # unique in the cluster
    isolation: bytes = b""
    affinity: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    arrived_at: float = field(default_factory=time.monotonic)


class Generations:
    """`async with` submits every prompt; iterating gives the deltas; leaving cancels what has not finished."""

    def __init__(
        self,
        router: RequestRouter,
        tokenizer: Tokenizer,
        metrics: RequestMetrics,
        prompts: Sequence[Prompt],
        asked: Asked,
    ) -> None:
        self.usage = Usage(prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts))
        self._router = router
        self._asked = asked
        self._runs = [
            PromptRun(
                prompt,
                tokenizer,
                RequestTiming(metrics, len(prompt.token_ids), prompt.sampling.n, asked.arrived_at),
                place * prompt.sampling.n,
                self.usage,
            )
            for place, prompt in enumerate(prompts)
        ]
        self._first: RunningGeneration | None = None
        self._stack = AsyncExitStack()

    @property
    def headers(self) -> dict[str, str]:
        """Where the (first) prompt runs, and why."""
        assert self._first is not None, "headers are known once the request has been placed"
        decision = self._first.decision
        return {"x-trunkline-replica": decision.replica, "x-trunkline-route-reason": decision.reason.value}

    async def __aenter__(self) -> Generations:
        """Raises what the router's `open` raises; nothing stays behind then."""
        async with AsyncExitStack() as stack:
            for run in self._runs:
                run.timing.arrived()
                stack.callback(run.timing.left)
            for place, run in enumerate(self._runs):
                request = self._routed(run.prompt, place)
                run.generation = await stack.enter_async_context(self._router.open(request))
            self._stack = stack.pop_all()
        self._first = self._runs[0].generation
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def deltas(self) -> AsyncGenerator[Delta]:
        """Until every choice has finished. Raises what ends a generation early."""
        if len(self._runs) == 1:
            async for delta in self._runs[0].deltas():
                yield delta
            return
        async with aclosing(_merged([run.deltas() for run in self._runs])) as merged:
            async for delta in merged:
                yield delta

    def _routed(self, prompt: Prompt, place: int) -> RoutedRequest:
        asked = self._asked
        return RoutedRequest(
            request_id=asked.request_id if len(self._runs) == 1 else f"{asked.request_id}-{place}",
            token_ids=pack_tokens(prompt.token_ids),
            sampling=prompt.sampling,
            isolation=asked.isolation,
            affinity=asked.affinity,
            priority=asked.priority,
            deadline_s=asked.deadline_s,
        )


async def _merged(sources: Sequence[AsyncIterator[Delta]]) -> AsyncGenerator[Delta]:
    """Whatever comes first. The first error ends all."""
    arrived: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()

    async def pump(source: AsyncIterator[Delta]) -> None:
        try:
            async for delta in source:
                arrived.put_nowait(delta)
        except Exception as error:
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        num_left = len(pumps)
        while num_left:
            event = await arrived.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                num_left -= 1
            else:
                yield event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
