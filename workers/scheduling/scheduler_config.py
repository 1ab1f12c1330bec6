"""What an operator may set about scheduling. Read by `scheduler.py` and `prefill.py`."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_seqs: int = 64  # sequences that run at once
    max_num_batched_tokens: int = 2048  # a step's budget
    enable_prefix_caching: bool = True
    max_begun_prefills: int = 2  # partly done ones of a priority class and those before it

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_begun_prefills < 1:
            raise InvalidRequest("max_num_seqs and max_begun_prefills must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequest(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least"
                f" max_num_seqs={self.max_num_seqs}: each running sequence takes one token a step"
            )
