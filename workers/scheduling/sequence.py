"""One of a request's `n` sequences: its tokens, how many of them have KV, and when it ends.

Changed by `scheduler.py` alone. After n prompt and m output tokens KV exists for n+m-1 of them: a drawn token is fed
in the next step.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from protocol.messages import FinishReason, SequenceOutput, TokenLogprob
from workers.kv.block_table import BlockTable

if TYPE_CHECKING:
    from workers.scheduling.live_request import LiveRequest

_MASK = 2**64 - 1


class Ending(NamedTuple):
    reason: FinishReason
    stop_token_id: int | None = None  # None for end of sequence


class Lengths(NamedTuple):
    """In tokens, prompt included."""

    prompt: int
    least: int  # no stop id counts up to here
    most: int


class Sequence:
    """`row` is its place at the runner while it runs; None while it waits and after it has ended."""

    __slots__ = (
        "admission",
        "admitted_class",
        "announced",
        "arrival_ending",
        "backlog_tokens",
        "eos_ids",
        "index",
        "lengths",
        "live",
        "most_computed",
        "most_tokens",
        "num_charged",
        "num_computed",
        "patience_steps",
        "row",
        "seed",
        "started",
        "stop_ids",
        "table",
        "tokens",
        "waiting_since_s",
    )

    def __init__(
        self,
        live: LiveRequest,
        index: int,
        tokens: array[int],
        table: BlockTable,
        lengths: Lengths,
        eos_ids: frozenset[int],
    ) -> None:
        sampling = live.request.sampling
        self.live = live
        self.index = index
        self.tokens = tokens
        self.table = table
        self.lengths = lengths
        self.most_tokens = lengths.most
        self.seed = sequence_seed(sampling.seed or 0, index)
        self.eos_ids = frozenset() if sampling.ignore_eos else eos_ids
        self.stop_ids = self.eos_ids.union(sampling.stop_token_ids)
        self.row: int | None = None
        self.num_computed = 0  # tokens whose KV exists, or will when the steps launched so far have run
        self.num_charged = len(
            tokens
        )  # known ones; those generated since are still to be charged to its tenant
        self.announced = False  # the receiver knows its row: plain tokens may come by that alone
        self.admission = 0  # the how-manieth admission its present one was
        self.admitted_class = live.request.priority  # at its present admission, improved by waiting
        self.waiting_since_s = live.arrived_s  # for the end of its prefill
        self.started = False  # has been admitted at least once
        self.patience_steps: int | None = (
            None  # how long it still waits for another's blocks; None: has not begun
        )
        self.backlog_tokens = 0  # its share of `LoadMeter.backlog_tokens`
        self.arrival_ending = self._ending_on_arrival()
        # No decode goes beyond: the last token drawn is never fed.
        self.most_computed = lengths.most - 1 if self.samples else 0

    @property
    def samples(self) -> bool:
        """False: it only computes what it came with (max_tokens=0, or moved here after its last token)."""
        return self.arrival_ending is None

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.tokens) - self.num_computed

    def output(
        self, token_ids: tuple[int, ...], ending: Ending | None, logprob: TokenLogprob | None = None
    ) -> SequenceOutput:
        """With its row, if from here on plain tokens will say all there is to say of it."""
        live = self.live
        reason, stop_token_id = ending if ending is not None else (None, None)
        self.announced = ending is None and logprob is None
        return SequenceOutput(
            live.request.request_id,
            self.index,
            token_ids,
            live.num_cached_tokens,
            reason,
            stop_token_id,
            None if logprob is None else (logprob,),
            live.take_prompt_logprobs(),
            self.row if self.announced else None,
        )

    def ending(self) -> Ending | None:
        """Whether the last token ends it. Stop ids are masked until `min_tokens` tokens have been drawn."""
        token = self.tokens[-1]
        if len(self.tokens) > self.lengths.least:
            if token in self.eos_ids:
                return Ending(FinishReason.STOP)
            if token in self.stop_ids:
                return Ending(FinishReason.STOP, token)
        return Ending(FinishReason.LENGTH) if len(self.tokens) >= self.lengths.most else None

    def check_integrity(self, block_size: int, cached: bool, in_flight: int | None) -> None:
        """`in_flight`: steps launched that draw for it; None while it does not decode."""
        table, computed = self.table, self.num_computed
        if self.row is None:
            assert computed == 0 and not table.blocks, "a waiting sequence holds blocks"
            return
        assert computed <= len(table.blocks) * block_size, "KV without a block"
        known = min(computed, len(self.tokens))
        if table.chained and cached:
            registered = table.num_registered * block_size
            assert known - 1 - block_size < registered <= known, "a full block is not registered"
        if in_flight is not None:
            assert computed == len(self.tokens) - 1 + in_flight, "not the n+m-1 rule"

    def _ending_on_arrival(self) -> Ending | None:
        if len(self.tokens) > self.lengths.prompt:
            return self.ending()
        return Ending(FinishReason.LENGTH) if len(self.tokens) >= self.lengths.most else None


def sequence_seed(seed: int, index: int) -> int:
    """The seed of a request's sequence: its own for the first, a well-mixed signed 64-bit one for the others."""
    if index == 0:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) & _MASK  # splitmix64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    mixed ^= mixed >> 31
    return mixed - 2**64 if mixed >= 2**63 else mixed
