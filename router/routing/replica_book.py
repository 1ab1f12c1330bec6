"""One replica's dispatches that have not ended, and what its reports add to them. Kept by `prefill_board.py`.

A report is true for its step, not for now: it says how many of our dispatches it contains, and those sent later are
not in it. To know how far begun prefills are is worth 2 to 4 % of the mean time to the first token in simulations of a
public trace at high load.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from router.requests.shares import Shares
from router.routing.loads import UnfinishedPrefill


@dataclass(slots=True, eq=False)
class Sent(UnfinishedPrefill):
    """One dispatch, until its first token."""

    prefill_s: float  # all of it, fixed at dispatch
    num_tokens: int  # uncached
    num_left: int  # of these, as far as reports tell
    tenant: bytes = b""


@dataclass(slots=True, eq=False)
class ReplicaBook:
    """`unfinished` is the policy's: the same object for as long as the replica is there."""

    unfinished: dict[str, Sent] = field(default_factory=dict)
    num_sequences: int = 0  # in flight, of this router
    others_tokens: int = 0  # of unfinished prefill that other routers sent there, or that was preempted
    others_sequences: int = 0
    num_others: int = 0  # prefills that those tokens are of, about
    free_tokens: int = 0  # room that nothing is cached in, as reported: what waits will take of it
    by_tenant: Shares = field(default_factory=Shares)  # uncached tokens of `unfinished`; one for all replicas
    _sequences: dict[str, int] = field(default_factory=dict)  # of each request
    _num_dispatched: int = 0
    _unseen: dict[str, int] = field(default_factory=dict)  # not in the reports yet -> its number

    @property
    def waiting_tokens(self) -> int:
        """Uncached tokens whose prefill has not ended, whoever sent them."""
        return self.others_tokens + sum([sent.num_left for sent in self.unfinished.values()])

    @property
    def num_in_flight(self) -> int:
        return self.others_sequences + self.num_sequences

    def dispatched(
        self,
        request_id: str,
        prefill_s: float,
        num_uncached: int,
        now_s: float,
        num_sequences: int,
        tenant: bytes = b"",
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        sent = Sent(prefill_s, now_s, prefill_s, num_uncached, num_uncached, tenant, priority=priority)
        self.unfinished[request_id] = sent
        self.by_tenant.add(tenant, weight, num_uncached)
        self._sequences[request_id] = num_sequences
        self._num_dispatched += 1
        self._unseen[request_id] = self._num_dispatched
        self.num_sequences += num_sequences

    def prefilled(self, request_id: str) -> bool:
        """Whether this was news."""
        sent = self.unfinished.pop(request_id, None)
        if sent is None:
            return False
        self.by_tenant.remove(sent.tenant, sent.num_tokens)
        return True

    def ended(self, request_id: str) -> None:
        self.prefilled(request_id)
        self._unseen.pop(request_id, None)
        self.num_sequences -= self._sequences.pop(request_id, 0)

    def close(self) -> None:
        """Its replica is gone, and what was sent there with it."""
        for request_id in list(self.unfinished):
            self.ended(request_id)

    def report(
        self,
        waiting_prefill_tokens: int,
        num_waiting: int,
        num_in_flight: int,
        free_tokens: int,
        num_submits: int | None = None,
    ) -> None:
        """What the replica has beyond our dispatches, others sent; what it has less of, it has computed already.

        It contains the first `num_submits` of our dispatches; None: all.
        """
        self.free_tokens = free_tokens
        self._see(self._num_dispatched if num_submits is None else num_submits)
        seen = [sent for name, sent in self.unfinished.items() if name not in self._unseen]
        num_expected = sum(sent.num_tokens for sent in seen)
        self.others_tokens = max(0, waiting_prefill_tokens - num_expected)
        num_prefills = num_waiting + 1  # one is running
        self.num_others = max(1, num_prefills - len(seen)) if self.others_tokens else 0
        _set_progress(seen, max(0, num_expected - waiting_prefill_tokens))
        num_seen = self.num_sequences - sum(self._sequences[name] for name in self._unseen)
        self.others_sequences = max(0, num_in_flight - num_seen)

    def _see(self, num_submits: int) -> None:
        for request_id in [name for name, number in self._unseen.items() if number <= num_submits]:
            del self._unseen[request_id]

    def check_integrity(self) -> None:
        assert self.num_sequences == sum(self._sequences.values()), "a wrong count of sequences"
        assert set(self.unfinished) <= set(self._sequences), "a prefill goes on that has ended"
        assert set(self._unseen) <= set(self._sequences), "a report is awaited for what has ended"
        assert all(0 <= sent.num_left <= sent.num_tokens for sent in self.unfinished.values()), (
            "more or less is left than there was"
        )


def _set_progress(seen: Collection[Sent], num_done: int) -> None:
    """So many tokens of these are computed: of those first that the replica's order puts first."""
    if num_done and len(seen) > 1:
        now_s = max(sent.dispatched_s for sent in seen)  # near enough: only the order matters
        seen = sorted(seen, key=lambda sent: sent.prefill_s / (1.0 + now_s - sent.dispatched_s))
    for sent in seen:
        done = min(num_done, sent.num_tokens)
        num_done -= done
        sent.num_left = sent.num_tokens - done
        sent.remaining_s = sent.prefill_s * sent.num_left / max(1, sent.num_tokens)
