"""One request's life at the router: what came back so far, where it runs, how it ends. Iterated by `api.py`.

The dispatcher pushes outputs in and places it anew when its replica is lost; from the tokens held here another
replica goes on where the lost one stopped, without the consumer noticing. What it was blamed for on the way is kept
here too, for `suspects.py`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from protocol.block_hash import join_digests
from protocol.errors import TrunklineError
from protocol.messages import SequenceOutput, Submit
from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES, pack_tokens
from router.requests.routed_request import Decision, RoutedRequest

PROOF_TOKENS = (
    8  # of each sequence, at a new place: what killed the last one would have killed this one by then
)

Death = tuple[str, int]  # a replica and its incarnation


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request runs now. `wire_id` differs from place to place, so that nothing old is taken for new."""

    decision: Decision
    wire_id: str
    expectation: int  # its entries in the prefix index
    exact: bool  # the replica's index was SYNCED at the decision


class Generation:
    """Yields every output until all sequences have finished, or raises the error that ended it."""

    def __init__(
        self,
        request: RoutedRequest,
        expires_at: float | None,
        on_stop: Callable[[Generation, int], None] = lambda generation, index: None,
    ) -> None:
        self.request = request
        self._on_stop = on_stop
        self.expires_at = expires_at  # by the router's clock
        self.digests: Sequence[bytes] | None = (
            None  # of the prompt's full blocks, once the block size is known
        )
        self.placement: Placement | None = None  # None: waits for a replica
        self.waiting_since_s: float | None = None  # by the router's clock, for its next token
        self.num_cached_tokens: int | None = None  # as first reported; None: no output yet
        self.moves = 0
        self.blames: set[Death] = set()  # what died, or hung, while it ran there; until it has proven itself
        self.apart = False  # blamed, and no output since: shares its replica with no other such request
        self.heard = False  # an output has come from its present place
        self._num_places = 0  # that it has had
        self._num_resumed_tokens = 0  # that it brought to its present place
        self._stopped_unheard = False
        self._decision: Decision | None = None
        self._generated = [array("i") for _ in range(request.sampling.n)]
        self._finished: set[int] = set()
        self._scored = False  # the prompt's logprobs have come
        self._outputs: deque[SequenceOutput] = deque()
        self._error: TrunklineError | None = None
        self._changed = asyncio.Event()

    # For whoever consumes it

    @property
    def decision(self) -> Decision:
        """The latest one, also while the request waits for its next place."""
        assert self._decision is not None, "the request still waits for its first replica"
        return self._decision

    @property
    def replica(self) -> str:
        return self.decision.replica

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> SequenceOutput:
        """What came before an error is yielded before it is raised."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if self.done:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._outputs.popleft()

    @property
    def more_ready(self) -> bool:
        """The next output has come already: asking for it will not wait."""
        return bool(self._outputs)

    def stop(self, index: int) -> None:
        """One sequence is complete for its consumer (a stop string): nothing more of it is computed or yielded."""
        if not self.over and index not in self._finished:
            self._finished.add(index)
            self._stopped_unheard |= not self.heard
            self._outputs = deque(output for output in self._outputs if output.index != index)
            self._on_stop(self, index)
            self._changed.set()

    async def placed(self) -> None:
        """Until it has its first place. Raises the error that it ended with instead."""
        while self._decision is None:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    # For the dispatcher

    @property
    def done(self) -> bool:
        return len(self._finished) == self.request.sampling.n

    @property
    def over(self) -> bool:
        return self.done or self._error is not None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.token_ids) // TOKEN_BYTES

    @property
    def sampling(self) -> SamplingParams:
        """What its next place is asked for. A prompt is scored once: after a move its cached blocks may serve."""
        asked = self.request.sampling
        return replace(asked, prompt_logprobs=None) if self._scored else asked

    @property
    def num_generated_tokens(self) -> int:
        return sum(map(len, self._generated))

    @property
    def next_wire_id(self) -> str:
        request_id = self.request.request_id
        return f"{request_id}~{self._num_places}" if self._num_places else request_id

    @property
    def deaths(self) -> int:
        return len(self.blames)

    @property
    def may_run_on(self) -> bool:
        """Its replica may not have stopped it by itself: it heeds the stop of one sequence only after the prompt."""
        return not self.done or self._stopped_unheard

    def submit(self, wire_id: str, now: float) -> Submit:
        """The message that starts it, or that goes on where the last replica stopped."""
        request = self.request
        return Submit(
            request_id=wire_id,
            token_ids=request.token_ids,
            sampling=self.sampling,
            digests=join_digests(self.digests or ()),
            isolation=request.isolation,
            generated=tuple(map(pack_tokens, self._generated)) if self.num_generated_tokens else (),
            priority=request.priority,
            deadline_s=None if self.expires_at is None else max(0.0, self.expires_at - now),
            finished=tuple(sorted(self._finished)),
            tenant=request.tenant,
            weight=request.weight,
            waited_s=0.0 if self.waiting_since_s is None else max(0.0, now - self.waiting_since_s),
        )

    def place(self, placement: Placement) -> None:
        self.placement, self._decision = placement, placement.decision
        self.heard = self._stopped_unheard = False
        self._num_places += 1
        self._num_resumed_tokens = self.num_generated_tokens
        self._changed.set()

    def displace(self) -> Placement:
        """It has lost its place; what was generated stays."""
        placement = self.placement
        assert placement is not None, "only a placed request loses its place"
        self.placement = None
        return placement

    def push(self, output: SequenceOutput) -> None:
        """One output of the present place; tokens of a sequence that has finished here are of no use."""
        self.heard, self.apart = True, False
        if self.over or not 0 <= output.index < self.request.sampling.n or output.index in self._finished:
            return
        self.num_cached_tokens = (
            output.num_cached_tokens if self.num_cached_tokens is None else self.num_cached_tokens
        )
        self._generated[output.index].extend(output.token_ids)
        if output.finish_reason is not None:
            self._finished.add(output.index)
        if output.prompt_logprobs is not None:
            output = replace(output, prompt_logprobs=None) if self._scored else output
            self._scored = True
        if self.blames and self._has_proven_itself:
            self.blames.clear()
        self._outputs.append(self._as_first_placed(output) if self._num_places > 1 else output)
        self._changed.set()

    def fail(self, error: TrunklineError) -> None:
        if not self.over:
            self._error = error
            self._changed.set()

    @property
    def _has_proven_itself(self) -> bool:
        """A poison's tokens are kept, so it kills again where it did: in the first steps at its next place."""
        num_new = self.num_generated_tokens - self._num_resumed_tokens
        return num_new >= PROOF_TOKENS * (self.request.sampling.n - len(self._finished))

    def _as_first_placed(self, output: SequenceOutput) -> SequenceOutput:
        """A move shows neither in the id nor in the count of cached tokens."""
        assert self.num_cached_tokens is not None, "the output has just been counted"
        return replace(output, request_id=self.request.request_id, num_cached_tokens=self.num_cached_tokens)
