"""What a request's sequences share while it lives in the scheduler. Changed by `scheduler.py` alone.

The first sequence computes the prompt. Then the prompt's blocks are held until each of the others has started on
them, sharing all but the one that holds the last prompt token, which it copies.
"""

from __future__ import annotations

from protocol.messages import TokenLogprob
from workers.kv.block import Block
from workers.scheduling.request import Request
from workers.scheduling.sequence import Sequence
from workers.scheduling.tenants import Account


class LiveRequest:
    __slots__ = (
        "account",
        "arrival",
        "arrived_s",
        "hold",
        "leader",
        "num_cached_tokens",
        "num_rows",
        "prompt_logprobs",
        "released",
        "request",
        "sequences",
    )

    def __init__(self, request: Request, arrival: int, arrived_s: float) -> None:
        self.request = request
        self.account = Account()  # its tenant's, from the line that it waited in last
        self.arrival = arrival  # the how-manieth request this is
        self.arrived_s = arrived_s
        self.leader = request.live_indices[0]  # computes the prompt
        self.sequences: list[Sequence] = []  # those that have not ended
        self.num_rows = 0
        self.num_cached_tokens = 0  # of the prompt, found by its first sequence
        self.released = False  # the prompt has been computed: every sequence may start
        self.hold: list[Block] | None = None
        self.prompt_logprobs: list[TokenLogprob] | None = (
            None if request.sampling.prompt_logprobs is None else []
        )

    def add_prompt_logprobs(self, start: int, scored: tuple[TokenLogprob, ...]) -> None:
        """Of the tokens behind position `start`. A prompt computed again, after preemption, brings some twice."""
        if self.prompt_logprobs is not None:
            self.prompt_logprobs += scored[len(self.prompt_logprobs) - start :]

    def take_prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """All of them, once."""
        taken, self.prompt_logprobs = self.prompt_logprobs, None
        return None if taken is None else tuple(taken)


def standing(live: LiveRequest) -> tuple[int, int]:
    """Its priority class, and how far its tenant is ahead of the others: the lowest goes first."""
    return live.request.priority, live.account.level
