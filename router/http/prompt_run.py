"""One prompt with its `n` choices: outputs of the router's core in, deltas with text out. Used by `generate.py`.

Knows where a choice ends (a stop string is found here, not at the replica), and nothing of JSON.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from protocol.messages import FinishReason, SequenceOutput, TokenLogprob
from router.http.delta import Delta, Finish, Prompt, Usage
from router.http.request_metrics import RequestTiming
from router.http.request_router import RunningGeneration
from router.text.text_stream import TextStream
from router.text.tokenizer import Tokenizer


class PromptRun:
    """`generation` is set once the request has been placed; then `bursts` may be iterated, once."""

    def __init__(
        self, prompt: Prompt, tokenizer: Tokenizer, timing: RequestTiming, first_choice: int, usage: Usage
    ) -> None:
        sampling = prompt.sampling
        self.prompt = prompt
        self.timing = timing
        self.generation: RunningGeneration | None = None
        self._streams = [TextStream(tokenizer, sampling, prompt.token_ids) for _ in range(sampling.n)]
        self._first_choice = first_choice
        self._usage = usage
        self._open = set(range(sampling.n))
        self._silent = set(range(sampling.n))  # choices that have shown nothing yet
        self._num_cached: int | None = None
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def finished(self) -> bool:
        return not self._open

    async def bursts(self) -> AsyncGenerator[list[Delta]]:
        """Deltas as they come; those that came together, together: one write can take them all."""
        assert self.generation is not None, "a run is iterated after its request was placed"
        burst: list[Delta] = []
        async for output in self.generation:
            if output.index in self._open:
                delta = self._delta(output)
                if delta.finish is not None and output.finish_reason is None:
                    self.generation.stop(output.index)
                burst.append(delta)
            if burst and not (self._open and self.generation.more_ready):
                yield burst
                burst = []
            if not self._open:  # stop strings may end it before the engine does
                return

    def _delta(self, output: SequenceOutput) -> Delta:
        self._count_cached(output.num_cached_tokens)
        stream = self._streams[output.index]
        text, offsets = _push(stream, output)
        num_taken = len(offsets)  # tokens behind a stop string do not count
        finish = _finish(stream, output)
        self._count_tokens(output, num_taken, finish)
        return Delta(
            choice=self._first_choice + output.index,
            text=text,
            token_ids=output.token_ids[:num_taken],
            logprobs=None if output.logprobs is None else output.logprobs[:num_taken],
            finish=finish,
            offsets=offsets,
            prompt_logprobs=self._scores(output),
        )

    def _count_cached(self, num_cached: int) -> None:
        """Once a prompt: its sequences share it."""
        if self._num_cached is None:
            self._num_cached = num_cached
            self._usage.cached_tokens += num_cached

    def _count_tokens(self, output: SequenceOutput, num_taken: int, finish: Finish | None) -> None:
        now = time.monotonic()
        self._usage.completion_tokens += num_taken
        self.timing.tokens(output.index, num_taken, output.num_cached_tokens, now)
        if self.prompt.sampling.max_tokens == 0:
            self.timing.computed(output.num_cached_tokens)
        if finish is not None:
            self._open.discard(output.index)
            self.timing.finished(finish.reason, now)

    def _scores(self, output: SequenceOutput) -> tuple[TokenLogprob, ...] | None:
        """The prompt's logprobs, for the first delta of every choice: the replica sends them once."""
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = output.prompt_logprobs
        if self.prompt.sampling.prompt_logprobs is None or output.index not in self._silent:
            return None
        self._silent.discard(output.index)
        if self._prompt_logprobs is None and len(self.prompt.token_ids) == 1:
            return ()  # nothing comes before the only token, so nothing predicted it
        assert self._prompt_logprobs is not None or output.finish_reason is FinishReason.ABORT, (
            "the replica answered without the logprobs of the prompt"
        )
        return self._prompt_logprobs


def _push(stream: TextStream, output: SequenceOutput) -> tuple[str, tuple[int, ...]]:
    """The text that is now safe to show, and where each token that counts begins."""
    parts, offsets = [], []
    for token_id in output.token_ids:
        if stream.stopped_by is not None:
            break
        offsets.append(stream.num_characters)
        parts.append(stream.push((token_id,)))
    if output.finish_reason is not None:
        parts.append(stream.finish())
    return "".join(parts), tuple(offsets)


def _finish(stream: TextStream, output: SequenceOutput) -> Finish | None:
    if stream.stopped_by is not None:
        return Finish(FinishReason.STOP.value, stream.stopped_by)
    if output.finish_reason is None:
        return None
    return Finish(output.finish_reason.value, output.stop_token_id)
