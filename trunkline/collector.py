"""One offline request from its first token to its `RequestOutput`. Used by `llm.py`; knows tokens and text only."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

from protocol.messages import FinishReason, SequenceOutput, TokenLogprob
from protocol.sampling import SamplingParams
from router.text.text_stream import TextStream
from router.text.tokenizer import Tokenizer
from trunkline.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput


@dataclass(slots=True)
class _SequenceSoFar:
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class RequestCollector:
    """`add` until `finished`; a stop string may finish a sequence before the engine knows."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: array[int],
        sampling: SamplingParams,
        tokenizer: Tokenizer,
    ) -> None:
        self.request_id = request_id
        self._prompt = prompt
        self._prompt_token_ids = list(prompt_token_ids)
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._sequences = [
            _SequenceSoFar(TextStream(tokenizer, sampling, self._prompt_token_ids)) for _ in range(sampling.n)
        ]
        self._num_cached_tokens = 0
        self._started_s = time.monotonic()
        self._first_token_s: float | None = None

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self._sequences)

    def add(self, output: SequenceOutput) -> bool:
        """Whether a stop string has just ended the sequence, which the engine cannot know."""
        sequence = self._sequences[output.index]
        if sequence.finished:
            return False  # computed before the engine learnt of a stop string
        if self._first_token_s is None:
            self._first_token_s = time.monotonic()
        self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        sequence.token_ids += output.token_ids
        sequence.logprobs += output.logprobs or ()
        sequence.stream.push(output.token_ids)
        return self._finish(sequence, output)

    def result(self) -> RequestOutput:
        now_s = time.monotonic()
        first_s = self._first_token_s if self._first_token_s is not None else now_s
        return RequestOutput(
            self.request_id,
            self._prompt,
            self._prompt_token_ids,
            [self._completion(index, sequence) for index, sequence in enumerate(self._sequences)],
            self._num_cached_tokens,
            RequestMetrics(first_s - self._started_s, now_s - self._started_s),
        )

    def _finish(self, sequence: _SequenceSoFar, output: SequenceOutput) -> bool:
        stop = sequence.stream.stopped_by
        if stop is None and output.finish_reason is not None:
            sequence.stream.finish()
            stop = sequence.stream.stopped_by
            sequence.finish_reason = output.finish_reason
            sequence.stop_reason = output.stop_token_id
        if stop is not None:
            del sequence.token_ids[sequence.stream.num_tokens :]
            del sequence.logprobs[sequence.stream.num_tokens :]
            sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, stop
        return stop is not None and output.finish_reason is None

    def _completion(self, index: int, sequence: _SequenceSoFar) -> CompletionOutput:
        wanted = self._sampling.logprobs is not None
        return CompletionOutput(
            index,
            sequence.stream.text,
            sequence.token_ids,
            sum(each.logprob for each in sequence.logprobs) if wanted else None,
            self._logprobs(sequence) if wanted else None,
            sequence.finish_reason.value if sequence.finish_reason is not None else None,
            sequence.stop_reason,
        )

    def _logprobs(self, sequence: _SequenceSoFar) -> list[dict[int, Logprob]]:
        text = self._tokenizer.token_text
        positions = []
        for token_id, drawn in zip(sequence.token_ids, sequence.logprobs, strict=True):
            position = {token_id: Logprob(drawn.logprob, drawn.rank, text(token_id))}
            for rank, (other, logprob) in enumerate(drawn.top, start=1):
                position.setdefault(other, Logprob(logprob, rank, text(other)))
            positions.append(position)
        return positions
