"""What `LLM.generate` gives back: the names that users of vLLM's offline API know."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate token at one position."""

    logprob: float
    rank: int | None = None  # 1: the most likely; None: only known to be among the alternatives
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of a request's n sequences. `stop_reason`: the stop string or id; None at end of sequence."""

    index: int
    text: str  # empty with detokenize=False
    token_ids: list[int] = field(repr=False)
    cumulative_logprob: float | None  # of the generated tokens; None: no logprobs were asked for
    logprobs: list[dict[int, Logprob]] | None = field(repr=False)
    finish_reason: str | None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Seconds since the request was given to `generate`."""

    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    request_id: str
    prompt: str | None  # None when token ids were given
    prompt_token_ids: list[int] = field(repr=False)  # without what truncate_prompt_tokens cut off
    outputs: list[CompletionOutput]
    num_cached_tokens: int  # of the prompt, really reused
    metrics: RequestMetrics
    finished: bool = True
    prompt_logprobs: list[dict[int, Logprob] | None] | None = field(
        default=None, repr=False
    )  # the first token's entry is None: nothing predicted it
