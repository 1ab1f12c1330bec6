"""How busy one replica is: its last report, plus what this router has sent there since. Kept by `replica_view.py`.

Load counts from the dispatch, not from the reply: ten requests of one moment must not all see an idle replica.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Load
from router.policy import Candidate

UNMEASURED_CAPACITY_TOKENS = 16_384  # until the replica reports how fast it prefills
LEAST_CAPACITY_TOKENS = 2_048
_FRAMES_UNTIL_SEEN = 2  # the frame that arrives just after a dispatch was built before it


@dataclass(slots=True)
class _Unseen:
    """A dispatch that the reported load need not contain yet."""

    prefill_tokens: int
    sequences: int
    frames_left: int = _FRAMES_UNTIL_SEEN


class ReplicaLoad:
    """Of one connection: a new one begins with nothing reported and nothing sent."""

    def __init__(self, kv_capacity_tokens: int, block_size: int, prefill_backlog_s: float) -> None:
        self.reported: Load | None = None
        self._kv_capacity_tokens = kv_capacity_tokens
        self._block_size = block_size
        self._prefill_backlog_s = prefill_backlog_s
        self._unseen: dict[str, _Unseen] = {}

    def report(self, load: Load) -> None:
        self.reported = load
        for wire_id, unseen in list(self._unseen.items()):
            unseen.frames_left -= 1
            if unseen.frames_left == 0:
                del self._unseen[wire_id]

    def dispatched(self, wire_id: str, prefill_tokens: int, sequences: int) -> None:
        self._unseen[wire_id] = _Unseen(prefill_tokens, sequences)

    def settled(self, wire_id: str) -> None:
        """Its first token has come, or it is gone: the report alone speaks for it."""
        self._unseen.pop(wire_id, None)

    @property
    def prefill_tokens(self) -> int:
        """Uncached tokens whose prefill has not ended."""
        reported = 0 if self.reported is None else self.reported.waiting_prefill_tokens
        return reported + sum(unseen.prefill_tokens for unseen in self._unseen.values())

    @property
    def running(self) -> int:
        load = self.reported
        reported = 0 if load is None else load.num_running + load.num_waiting
        return reported + sum(unseen.sequences for unseen in self._unseen.values())

    def candidate(self, replica: str, matched_tokens: int) -> Candidate:
        load = self.reported
        return Candidate(
            replica=replica,
            matched_tokens=matched_tokens,
            prefill_tokens=self.prefill_tokens,
            running=self.running,
            prefill_capacity_tokens=self._prefill_capacity_tokens,
            used_kv_tokens=0 if load is None else load.num_used_blocks * self._block_size,
            kv_capacity_tokens=self._kv_capacity_tokens,
            prefill_s_per_token=0.0 if load is None else load.prefill_s_per_token,
            decode_step_s=0.0 if load is None else load.decode_step_s,
        )

    @property
    def _prefill_capacity_tokens(self) -> int:
        """The prefill that the replica does in the time that a holder may keep a request waiting."""
        if self.reported is None or self.reported.prefill_s_per_token <= 0.0:
            return UNMEASURED_CAPACITY_TOKENS
        return max(LEAST_CAPACITY_TOKENS, int(self._prefill_backlog_s / self.reported.prefill_s_per_token))
