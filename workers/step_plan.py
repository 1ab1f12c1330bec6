"""What the scheduler asks of a device for one step, and what comes back. The border between engine and `Runner`.

A running sequence holds a *row*: a small integer under which the runner keeps what lasts (block table, sampling
state, the token drawn last). A plan only says what changed, so that its size does not grow with the context. Rows that
decode, most of a busy step, are two columns of numbers, and carry no token: each feeds the one that it drew last,
which never leaves the device. So the next plan can be made while this one runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol.codec import message
from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class RowStart:
    """A sequence takes a row. Its block table is empty until `StepPlan.grown` fills it."""

    row: int
    prompt: bytes = field(repr=False)  # packed int32
    generated: bytes = field(repr=False)  # tokens it already has beyond the prompt (moved, preempted)
    sampling: SamplingParams
    seed: int  # this sequence's own: token at position p is drawn from (seed, p) alone
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of one row's prefill: compute the KV of `token_ids` from position `start` on."""

    row: int
    start: int  # position of the first token = tokens of the row whose KV exists
    token_ids: bytes = field(repr=False)  # packed int32
    sample: bool  # draw the token that follows the last one

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) // TOKEN_BYTES


@message(60)
@dataclass(frozen=True, slots=True)
class StepPlan:
    """Applied in the order of the fields."""

    step: int
    ends: tuple[int, ...] = ()  # rows given back since the last plan
    starts: tuple[RowStart, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()  # whole blocks, (source, destination)
    grown: tuple[tuple[int, tuple[int, ...]], ...] = ()  # blocks to append to a row's table
    decode_rows: bytes = b""  # packed int32: each feeds the token it drew last, and draws the next
    decode_starts: bytes = b""  # packed int32: that token's position
    chunks: tuple[Chunk, ...] = ()

    @property
    def num_decodes(self) -> int:
        return len(self.decode_rows) // TOKEN_BYTES

    @property
    def num_prefill_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_drawn(self) -> int:
        return self.num_decodes + sum(chunk.sample for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One token per row that decodes, in the plan's order, then one per chunk with `sample`."""

    token_ids: Sequence[int] = ()
    logprobs: Mapping[int, TokenLogprob] = field(
        default_factory=dict
    )  # by place in `token_ids`, if asked for
    # By index in the plan's chunks, if asked for: of the token after each of the chunk's, those beyond the prompt
    # left out.
    prompt_logprobs: Mapping[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)

    def wait(self) -> SampledTokens:
        """A step that has run is its own `PendingStep`."""
        return self
