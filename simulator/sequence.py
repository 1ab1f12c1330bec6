"""A request of the trace as the product's admission orders see it: their own `Sequence`, without the engine's parts.

Made by `simulation.py`, kept by `replica.py`. It has just what the orders read, so they run unchanged.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import cast

from protocol.sampling import SamplingParams
from simulator.trace import TraceRequest
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.request import Request
from workers.scheduling.sequence import Sequence


@cache
def _request(tenant: str, priority: int) -> Request:
    """All that orders read of a request."""
    sampling = SamplingParams(max_tokens=1)
    return Request("simulated", b"\0\0\0\0", sampling, priority=priority, tenant=tenant.encode())


class SimulatedSequence(Sequence):
    """`row` is None until its prefill has begun, as in the engine."""

    __slots__ = ("blocks", "cached_tokens", "num_matched", "prefill_s", "remaining_s", "request", "ttft_s")

    def __init__(self, request: TraceRequest) -> None:
        self.request = request
        self.live = LiveRequest(_request(request.tenant, request.priority), request.index, request.arrival_s)
        self.index = 0
        self.row: int | None = None
        self.tokens = cast("array[int]", range(request.num_tokens))  # only its length is read
        self.num_charged = request.num_tokens
        self.waiting_since_s = request.arrival_s
        self.blocks = request.blocks
        self.backlog_tokens = 0  # still to be prefilled, its cached blocks left out
        self.num_matched = 0  # blocks of the prompt that were cached when they were looked up last
        self.cached_tokens = 0  # found when its prefill began
        self.remaining_s = 0.0  # of its prefill, on an otherwise idle replica
        self.prefill_s = 0.0  # that it has had so far, slowed by the decodes
        self.ttft_s: float | None = None

    def note_output(self) -> None:
        """It has ended: its tokens are what came and what was generated."""
        num_tokens = self.request.num_tokens + self.request.num_output_tokens
        self.tokens = cast("array[int]", range(num_tokens))
