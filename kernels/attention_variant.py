"""What a layer's attention computes, and the rows of a step that it is computed for.

Shared by the meaning (`naive_attention.py`), its fast form (`paged_attention.py`) and whoever builds either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One row's share of the step: queries at positions `start` to `start + num_queries`."""

    row: int  # of the block tables
    start: int
    num_queries: int

    @property
    def num_keys(self) -> int:
        return self.start + self.num_queries


@dataclass(frozen=True, slots=True)
class AttentionVariant:
    """score = scale · (q · k), capped, then biased; a query at position i sees the keys j <= i within its window."""

    scale: float
    window: int | None = None  # tokens: key j is seen if i - window < j
    softcap: float | None = None  # score = cap · tanh(score / cap)
    alibi_slopes: tuple[float, ...] | None = (
        None  # of this rank's query heads: slope · (j - i) is added to the score
    )
    # As in Falcon, slope · j is added instead, rounded to bfloat16 and scaled like the product. What is rounded depends
    # on the position, so that an exact j - i would give other tokens from a few dozen keys on. Not with a window.
    alibi_in_bfloat16: bool = False

    def __post_init__(self) -> None:
        assert self.window is None or self.window > 0, f"a window of {self.window} tokens sees nothing"
        assert self.softcap is None or self.softcap > 0, f"a cap of {self.softcap} leaves no score"
        assert self.alibi_slopes is None or min(self.alibi_slopes) > 0, "a slope must let distant keys fade"
        assert self.window is None or not self.alibi_in_bfloat16, (
            "a window's keys are counted from its own first"
        )

    @property
    def changes_scores(self) -> bool:
        """Beyond the scale, and beyond hiding some of them."""
        return self.softcap is not None or self.alibi_slopes is not None

    def first_key(self, position: int) -> int:
        """The first that a query at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


class PagedAttention(Protocol):
    """A fast form of one variant. A plan is for the attention that made it, and for the layers of one step."""

    def plan(self, rows: Sequence[QueryRow], block_tables: Tensor) -> Any:  # [rows, blocks] int64
        """Rows with one query come first, shortest first."""
        ...

    def run(
        self,
        q: Tensor,  # [tokens, q_heads, head_dim]
        kv: Tensor,  # a layer's pool, in the layout of the device
        plan: Any,
        kv_scales: Tensor | None = None,  # [2, kv_heads] fp32: what an fp8 pool holds is multiplied
    ) -> Tensor:  # [tokens, q_heads · head_dim]
        ...
