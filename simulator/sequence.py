"""A request of the trace as the product's admission orders see it: their own `Sequence`, without the engine's parts.

Made by `simulation.py`, kept by `replica.py`. It has just what the orders read, so they run unchanged.
"""

from __future__ import annotations

from array import array
from typing import cast

from protocol.sampling import SamplingParams
from simulator.trace import TraceRequest
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.request import Request
from workers.scheduling.sequence import Sequence

_ANY = Request("simulated", b"\0\0\0\0", SamplingParams(max_tokens=1))  # orders read its priority alone


class SimulatedSequence(Sequence):
    """`row` is None until its prefill has begun, as in the engine."""

    __slots__ = ("blocks", "cached_tokens", "num_matched", "prefill_s", "remaining_s", "request", "ttft_s")

    def __init__(self, request: TraceRequest) -> None:
        self.request = request
        self.live = LiveRequest(_ANY, request.index, request.arrival_s)
        self.index = 0
        self.row: int | None = None
        self.tokens = cast("array[int]", range(request.num_tokens))  # only its length is read
        self.waiting_since_s = request.arrival_s
        self.blocks = request.blocks
        self.backlog_tokens = 0  # still to be prefilled, its cached blocks left out
        self.num_matched = 0  # blocks of the prompt that were cached when they were looked up last
        self.cached_tokens = 0  # found when its prefill began
        self.remaining_s = 0.0  # of its prefill, on an otherwise idle replica
        self.prefill_s = 0.0  # that it has had so far, slowed by the decodes
        self.ttft_s: float | None = None
