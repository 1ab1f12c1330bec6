"""One client request as running generations: token ids go to the router, text comes back, choice by choice.

Used by `completions.py` and `chat.py`, which give the text its JSON shape. A request with several prompts runs as
several generations whose choices are numbered through. Owns nothing after `aclose`: leaving cancels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from protocol.messages import FinishReason, SequenceOutput, TokenLogprob
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from router.http.request_metrics import RequestMetrics, RequestTiming
from router.http.request_router import RequestRouter, RunningGeneration
from router.routed_request import RoutedRequest
from router.text.text_stream import TextStream
from router.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ready to run. `text` is what `echo` gives back."""

    token_ids: list[int] = field(repr=False)
    sampling: SamplingParams
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """What all prompts of one client request share."""

    request_id: str  # unique in the cluster
    isolation: bytes = b""
    affinity: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    arrived_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Finish:
    reason: str  # OpenAI's finish_reason
    stop_reason: str | int | None = None  # the stop string or stop id that ended it


@dataclass(frozen=True, slots=True)
class Delta:
    """What came for one choice: text that is safe to show, and the tokens, whose text may still be held back."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish: Finish | None


@dataclass(slots=True)
class Usage:
    """Counts of one client request, growing as it runs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


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
        self.prompts = tuple(prompts)
        self._router = router
        self._asked = asked
        self._runs = [
            _Run(
                prompt,
                [TextStream(tokenizer, prompt.sampling, prompt.token_ids) for _ in range(prompt.sampling.n)],
                RequestTiming(metrics, len(prompt.token_ids), prompt.sampling.n, asked.arrived_at),
                place * prompt.sampling.n,
                self.usage,
            )
            for place, prompt in enumerate(prompts)
        ]
        self._first: RunningGeneration | None = None
        self._stack = AsyncExitStack()

    @property
    def num_choices(self) -> int:
        return sum(prompt.sampling.n for prompt in self.prompts)

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


class _Run:
    """One prompt with its `n` choices."""

    def __init__(
        self,
        prompt: Prompt,
        streams: list[TextStream],
        timing: RequestTiming,
        first_choice: int,
        usage: Usage,
    ) -> None:
        self.prompt = prompt
        self.timing = timing
        self.generation: RunningGeneration | None = None
        self._streams = streams
        self._first_choice = first_choice
        self._usage = usage
        self._open = set(range(prompt.sampling.n))
        self._num_cached: int | None = None

    async def deltas(self) -> AsyncIterator[Delta]:
        assert self.generation is not None, "a run is iterated after its request was placed"
        async for output in self.generation:
            if output.index in self._open:
                delta = self._delta(output)
                if delta.finish is not None and output.finish_reason is None:
                    self.generation.stop(output.index)
                yield delta
            if not self._open:  # stop strings may end it before the engine does
                return

    def _delta(self, output: SequenceOutput) -> Delta:
        self._count_cached(output.num_cached_tokens)
        stream = self._streams[output.index]
        before = stream.num_tokens
        text = stream.push(output.token_ids)
        if output.finish_reason is not None:
            text += stream.finish()
        num_taken = stream.num_tokens - before  # tokens behind a stop string do not count
        self._usage.completion_tokens += num_taken
        finish = _finish(stream, output)
        now = time.monotonic()
        self.timing.tokens(output.index, num_taken, output.num_cached_tokens, now)
        if finish is not None:
            self._open.discard(output.index)
            self.timing.finished(finish.reason, now)
        return Delta(
            choice=self._first_choice + output.index,
            text=text,
            token_ids=output.token_ids[:num_taken],
            logprobs=None if output.logprobs is None else output.logprobs[:num_taken],
            finish=finish,
        )

    def _count_cached(self, num_cached: int) -> None:
        """Once a prompt: its sequences share it."""
        if self._num_cached is None:
            self._num_cached = num_cached
            self._usage.cached_tokens += num_cached


def _finish(stream: TextStream, output: SequenceOutput) -> Finish | None:
    if stream.stopped_by is not None:
        return Finish(FinishReason.STOP.value, stream.stopped_by)
    if output.finish_reason is None:
        return None
    return Finish(output.finish_reason.value, output.stop_token_id)


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
