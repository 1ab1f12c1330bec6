"""One client request as running generations: token ids go to the router, text comes back, choice by choice.

Made by `generation_routes.py`, iterated by `answer_response.py`. A request with several prompts runs as several
generations whose choices are numbered through. Owns nothing after leaving: that cancels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from protocol.tokens import pack_tokens
from router.http.delta import Delta, Prompt, Usage
from router.http.prompt_run import PromptRun
from router.http.request_metrics import RequestMetrics, RequestTiming
from router.http.request_router import RequestRouter, RunningGeneration
from router.requests.routed_request import RoutedRequest
from router.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Asked:
    """What all prompts of one client request share."""

    request_id: str  # unique in the cluster
    isolation: bytes = b""
    affinity: str | None = None
    priority: int = 0
    tenant: bytes = b""
    weight: float = 1.0
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
        """Where the (first) prompt runs, why, and how much of it was believed to be cached there and at best."""
        assert self._first is not None, "headers are known once the request has been placed"
        decision = self._first.decision
        return {
            "x-trunkline-replica": decision.replica,
            "x-trunkline-route-reason": decision.reason.value,
            "x-trunkline-predicted-cached-tokens": str(decision.matched_tokens),
            "x-trunkline-best-cached-tokens": str(decision.best_matched_tokens),
        }

    @property
    def finished(self) -> bool:
        """Every choice has."""
        return all(run.finished for run in self._runs)

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

    def bursts(self) -> AsyncGenerator[list[Delta]]:
        """Deltas, together where they came together, until every choice has finished.

        Raises what ends a generation early.
        """
        sources = [run.bursts() for run in self._runs]
        return sources[0] if len(sources) == 1 else _merged(sources)

    def _routed(self, prompt: Prompt, place: int) -> RoutedRequest:
        asked = self._asked
        return RoutedRequest(
            request_id=asked.request_id if len(self._runs) == 1 else f"{asked.request_id}-{place}",
            token_ids=pack_tokens(prompt.token_ids),
            sampling=prompt.sampling,
            isolation=asked.isolation,
            affinity=asked.affinity,
            priority=asked.priority,
            tenant=asked.tenant,
            weight=asked.weight,
            deadline_s=asked.deadline_s,
        )


async def _merged(sources: Sequence[AsyncIterator[list[Delta]]]) -> AsyncGenerator[list[Delta]]:
    """Whatever comes first. The first error ends all."""
    arrived: asyncio.Queue[list[Delta] | BaseException | None] = asyncio.Queue()

    async def pump(source: AsyncIterator[list[Delta]]) -> None:
        try:
            async for burst in source:
                arrived.put_nowait(burst)
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
