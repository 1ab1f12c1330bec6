"""What the scheduler asks of a device for one step, and what comes back. The border between engine and `Runner`.

A running sequence holds a *row*: a small integer under which the runner keeps what lasts (block table, sampling
state). A plan only says what changed, so that its size does not grow with the context.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.codec import message
from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class RowStart:
    """A sequence takes a row. Its block table is empty until `RowStep.new_blocks` fill it."""

    row: int
    prompt: bytes = field(repr=False)  # packed int32
    generated: bytes = field(repr=False)  # tokens it already has beyond the prompt (moved, preempted)
    sampling: SamplingParams
    seed: int  # this sequence's own: token at position p is drawn from (seed, p) alone
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class RowStep:
    """One row's share of the step: compute the KV of `token_ids` from position `start` on."""

    row: int
    start: int  # position of the first token = tokens of the row whose KV exists
    token_ids: tuple[int, ...]
    new_blocks: tuple[int, ...]  # appended to the row's block table before the step
    sample: bool  # draw the token that follows the last one


@message(60)
@dataclass(frozen=True, slots=True)
class StepPlan:
    """Applied in the order of the fields. Rows that decode come before rows in prefill."""

    step: int
    ends: tuple[int, ...]  # rows given back since the last plan
    starts: tuple[RowStart, ...]
    copies: tuple[tuple[int, int], ...]  # whole blocks, (source, destination)
    rows: tuple[RowStep, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One entry per row of the plan with `sample`, in the plan's order."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob | None, ...]  # None where the row did not ask for any
