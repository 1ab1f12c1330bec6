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
    stream: TextStream | None  # None: the user wants token ids alone
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
        self._sequences = [_SequenceSoFar(self._stream()) for _ in range(sampling.n)]
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = None
        self._num_cached_tokens = 0
        self._started_s = time.monotonic()
        self._first_token_s: float | None = None

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self._sequences)

    def add(self, output: SequenceOutput) -> bool:
        """Whether a stop string has just ended the sequence, which the engine cannot know."""
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = output.prompt_logprobs
        sequence = self._sequences[output.index]
        if sequence.finished:
            return False  # computed before the engine learnt of a stop string
        if self._first_token_s is None:
            self._first_token_s = time.monotonic()
        self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        sequence.token_ids += output.token_ids
        sequence.logprobs += output.logprobs or ()
        if sequence.stream is not None:
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
            prompt_logprobs=self._prompt_positions(),
        )

    def _stream(self) -> TextStream | None:
        if not self._sampling.detokenize:
            return None
        return TextStream(self._tokenizer, self._sampling, self._prompt_token_ids)

    def _finish(self, sequence: _SequenceSoFar, output: SequenceOutput) -> bool:
        stream = sequence.stream
        if output.finish_reason is not None:
            sequence.finish_reason = output.finish_reason
            sequence.stop_reason = output.stop_token_id
            if stream is not None:
                stream.finish()
        if stream is None or stream.stopped_by is None:
            return False
        del sequence.token_ids[stream.num_tokens :]
        del sequence.logprobs[stream.num_tokens :]
        sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, stream.stopped_by
        return output.finish_reason is None

    def _completion(self, index: int, sequence: _SequenceSoFar) -> CompletionOutput:
        wanted = self._sampling.logprobs is not None
        positions = zip(sequence.token_ids, sequence.logprobs, strict=True) if wanted else ()
        return CompletionOutput(
            index,
            "" if sequence.stream is None else sequence.stream.text,
            sequence.token_ids,
            sum((each.logprob for each in sequence.logprobs), 0.0) if wanted else None,
            [self._position(token_id, entry) for token_id, entry in positions] if wanted else None,
            sequence.finish_reason.value if sequence.finish_reason is not None else None,
            sequence.stop_reason,
        )

    def _prompt_positions(self) -> list[dict[int, Logprob] | None] | None:
        """None: not asked for, or it ended before the prompt was computed."""
        scored = self._prompt_logprobs
        if self._sampling.prompt_logprobs is None or (scored is None and len(self._prompt_token_ids) > 1):
            return None
        predicted = zip(self._prompt_token_ids[1:], scored or (), strict=True)
        return [None, *(self._position(token_id, entry) for token_id, entry in predicted)]

    def _position(self, token_id: int, entry: TokenLogprob) -> dict[int, Logprob]:
        """The token that is there first, then the likeliest ones."""
        position = {token_id: Logprob(entry.logprob, entry.rank, self._text(token_id))}
        for rank, (other, logprob) in enumerate(entry.top, start=1):
            if other != token_id:
                position[other] = Logprob(logprob, rank, self._text(other))
        return position

    def _text(self, token_id: int) -> str | None:
        return self._tokenizer.token_text(token_id) if self._sampling.detokenize else None
