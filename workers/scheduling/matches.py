"""What a waiting sequence would find computed already, or soon. Asked by `prefill.py`, and by the orders of admission.

Three sources: its request's prompt, held for it; the prefix cache; another sequence that is computing the same blocks.
"""

from __future__ import annotations

from workers.kv.block import Block
from workers.kv.kv_cache import KvCache
from workers.kv.prefix_cache import PrefixNode
from workers.scheduling.load_meter import LoadMeter
from workers.scheduling.running import Running
from workers.scheduling.sequence import Sequence


class Matches:
    __slots__ = ("_kv", "_meter", "_running")

    def __init__(self, kv: KvCache, running: Running, meter: LoadMeter) -> None:
        self._kv = kv
        self._running = running
        self._meter = meter

    def forks(self, sequence: Sequence) -> bool:
        """It starts on the prompt that another sequence of its request has computed."""
        return sequence.live.hold is not None and not sequence.started

    def bypasses(self, sequence: Sequence) -> bool:
        """Prompt logprobs need every position computed."""
        return sequence.live.request.sampling.prompt_logprobs is not None

    def lookup(self, sequence: Sequence) -> list[PrefixNode]:
        return [] if self.bypasses(sequence) else self._kv.lookup(sequence.table, sequence.tokens)

    def shared_blocks(self, sequence: Sequence) -> list[Block]:
        """Those that it would not need to take from the pool."""
        if not self.forks(sequence):
            return [node.block for node in self.lookup(sequence)]
        assert sequence.live.hold is not None, "a fork needs the prompt's blocks"
        return sequence.live.hold[: (sequence.lengths.prompt - 1) // self._kv.block_size]

    def num_uncached(self, sequence: Sequence) -> int:
        """Tokens that it has left to prefill, as far as digests tell; from now on the load says so too."""
        if sequence.row is not None:
            return sequence.num_remaining
        num_tokens = len(sequence.tokens)
        if self.forks(sequence):
            num_cached = sequence.lengths.prompt - 1
        elif self.bypasses(sequence):
            num_cached = 0
        else:
            found_before = num_tokens - sequence.backlog_tokens
            num_cached = self._kv.num_cached_tokens(sequence.table, num_tokens, found_before)
        num_uncached = num_tokens - num_cached
        if num_uncached != sequence.backlog_tokens:
            self._meter.set_backlog(sequence, num_uncached)
        return num_uncached

    def would_wait(self, sequence: Sequence) -> bool:
        """Somebody is about to compute the next block that it misses, and it has patience left."""
        patient = sequence.patience_steps is None or sequence.patience_steps > 0
        num_cached = len(sequence.tokens) - sequence.backlog_tokens
        return patient and self._provider(sequence, num_cached // self._kv.block_size) is not None

    def waits(self, sequence: Sequence, num_matched: int, tokens_a_step: int) -> bool:
        """The same, for `num_matched` blocks, and one step of its patience is gone.

        It waits once in its life, for as many steps as the other's prefill should take.
        """
        other = self._provider(sequence, num_matched)
        if other is None:
            return False
        if sequence.patience_steps is None:
            sequence.patience_steps = -(-other.num_remaining // max(1, tokens_a_step)) + 1
        sequence.patience_steps -= 1
        return sequence.patience_steps >= 0

    def _provider(self, sequence: Sequence, num_matched: int) -> Sequence | None:
        digests, limit = sequence.table.digests, (len(sequence.tokens) - 1) // self._kv.block_size
        if not self._kv.enabled or num_matched >= limit or self._computes_its_own(sequence):
            return None
        wanted = digests[num_matched]
        for other in self._running.begun:
            table = other.table
            ahead = table.chained and table.num_registered <= num_matched < len(table.digests)
            if ahead and table.digests[num_matched] == wanted:
                return other
        return None

    def _computes_its_own(self, sequence: Sequence) -> bool:
        return self.bypasses(sequence) or self.forks(sequence)
