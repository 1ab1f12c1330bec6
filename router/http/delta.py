"""What passes between a client's running request and the answer that shows it. No behaviour of its own.

Made by `prompt_run.py`, shaped by `answer.py` and its two heirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ready to run. `echo` is the text that every choice puts in front of its own; None: not asked for."""

    token_ids: Sequence[int] = field(repr=False)
    sampling: SamplingParams
    echo: str | None = field(default=None, repr=False)


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
    offsets: tuple[int, ...] = ()  # where each token begins, in characters of what the choice has generated
    prompt_logprobs: tuple[TokenLogprob, ...] | None = (
        None  # of all but the first; with a choice's first delta
    )


@dataclass(slots=True)
class Usage:
    """Counts of one client request, growing as it runs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
