"""What this router has running at one replica, and what the replica reports of its work. Kept by `replica_view.py`.

Everything that begins or ends there passes here, so that the prefill board knows the load and the step watch when to
look. Knows neither connection nor membership.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.messages import Load, Submit
from router.deployment import Deployment
from router.replicas.step_watch import StepWatch
from router.requests.generation import Generation
from router.routing.prefill_board import PrefillBoard


class ReplicaWork:
    """`on_hang` is told for how many seconds no step came though something is live."""

    def __init__(
        self,
        replica_id: str,
        deployment: Deployment,
        board: PrefillBoard,
        hang_timeout_s: float,
        on_hang: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self.live: dict[str, Generation] = {}  # by wire id
        self.reported: Load | None = None  # over the present connection
        self._replica_id = replica_id
        self._deployment = deployment
        self._board = board
        self._clock = clock
        self._watch = StepWatch(hang_timeout_s, self._prefill_s, on_hang, clock)

    @property
    def hung_s(self) -> float | None:
        """For how long no step had come when that was noticed; None: it does not hang."""
        return self._watch.hung_s

    @property
    def waiting_prefill_tokens(self) -> int:
        return self._board.waiting_prefill_tokens(self._replica_id)

    def connected(self) -> None:
        self._board.add(self._replica_id)
        self._watch.restart()

    def lost(self) -> None:
        self.reported = None
        self._board.remove(self._replica_id)
        self._watch.restart()

    def begin(self, generation: Generation, submit: Submit, num_cached: int) -> None:
        num_tokens = generation.num_prompt_tokens + generation.num_generated_tokens
        self._board.dispatched(
            self._replica_id,
            submit.request_id,
            num_uncached=max(0, num_tokens - num_cached),
            num_cached=num_cached,
            now_s=self._clock(),
            num_sequences=submit.num_live_sequences,
            tenant=submit.tenant,
            weight=submit.weight,
            priority=submit.priority,
        )
        self.live[submit.request_id] = generation
        self._watch.work()

    def prefilled(self, wire_id: str) -> None:
        """Its first token has come."""
        self._board.prefilled(self._replica_id, wire_id)

    def end(self, wire_id: str) -> None:
        self.live.pop(wire_id, None)
        self._board.ended(self._replica_id, wire_id)
        if not self.live:
            self._watch.rest()

    def stepped(self) -> bool:
        """Whether that ended a hang."""
        return self._watch.stepped()

    def report(self, load: Load, num_submits: int | None = None) -> None:
        self.reported = load
        hasher = self._deployment.hasher
        assert hasher is not None, "a replica that reports has told its block size"
        self._board.report_load(self._replica_id, load, hasher.block_size, num_submits, self._clock())

    def _prefill_s(self) -> float:
        """What all prefill that waits there would take: no step takes longer for it."""
        if self.reported is None:
            return 0.0
        return self.reported.prefill_s_per_token * self.waiting_prefill_tokens
