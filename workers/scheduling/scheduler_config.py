"""What an operator may set about scheduling. Read by `scheduler.py` and `prefill.py`."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_seqs: int = 64  # sequences that run at once
    # A step's budget. At least this - max_num_seqs + 1 of it is left to a begun prefill, which has one of the rows.
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    max_begun_prefills: int = 2  # left partly done by a step, of a priority class and those before it
    # Waiting this long improves a priority class by one; None: never. Short, it lets adjacent classes merge in
    # overload: at twice what a replica can do, 30 s gave the better class a mean first token of 31 s, 300 s 3.9 s.
    priority_ageing_s: float | None = 300.0

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_begun_prefills < 1:
            raise InvalidRequest("max_num_seqs and max_begun_prefills must be at least 1")
        if self.priority_ageing_s is not None and not self.priority_ageing_s > 0:
            raise InvalidRequest("priority_ageing_s must be above 0 seconds, or None for no ageing")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequest(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least"
                f" max_num_seqs={self.max_num_seqs}: each running sequence takes one token a step"
            )
