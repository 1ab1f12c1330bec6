"""How likely tokens were, their ranks, and the most likely tokens with theirs; for the rows that ask.

    logprob(i) = (x_i - max x) - log Σ_j exp(x_j - max x)          rank(i) = 1 + #{ j : x_j > x_i }

as `workers/model/token_logprobs.py` reads them on a CPU; of tokens alike, the first ones. Splits are summed in a fixed
order. Ranks compare logits, where a CPU compares log-probabilities: those of unlike tokens may round to one number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.argmax import NO_PAIR, SPLIT, id_of, logit_of, num_splits, pairs_of
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled

MOST_BEST = 20  # alternatives that a row may ask for
_PLACES = 32  # the power of two above
_WARPS = 8


@triton.jit
def _split_scores_kernel(
    logits_ptr,  # [rows, vocab_size]
    token_ids_ptr,  # [rows]
    num_best_ptr,  # [rows] int32, -1: the row does not ask
    pairs_ptr,  # [rows, splits, PLACES] int64, written: the best of each split, as wanted and at least one
    sums_ptr,  # [rows, splits] fp32, written: of exp(x - the split's largest)
    num_better_ptr,  # [rows, splits] int32, written: tokens more likely than the row's
    row_stride,
    vocab_size,
    SPLIT: tl.constexpr,
    PLACES: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_best = tl.load(num_best_ptr + row)
    if num_best >= 0:
        place = row * tl.num_programs(1) + split
        ids = split * SPLIT + tl.arange(0, SPLIT)
        own = tl.load(logits_ptr + row * row_stride + tl.load(token_ids_ptr + row)).to(tl.float32)
        logits = tl.load(logits_ptr + row * row_stride + ids, ids < vocab_size, -float("inf")).to(tl.float32)
        tl.store(num_better_ptr + place, tl.sum((logits > own).to(tl.int32), 0))  # (SPLIT)
        pairs = pairs_of(logits, ids)  # (SPLIT)
        best = tl.max(pairs, 0)
        most = logit_of(best)
        tl.store(sums_ptr + place, tl.sum(tl.where(logits == most, 1.0, tl.exp(logits - most)), 0))
        tl.store(pairs_ptr + place * PLACES, best)
        for rank in range(1, num_best):
            pairs = tl.where(pairs == best, NO_PAIR, pairs)
            best = tl.max(pairs, 0)
            tl.store(pairs_ptr + place * PLACES + rank, best)


@triton.jit
def _scores_kernel(
    logits_ptr,  # [rows, vocab_size]
    token_ids_ptr,  # [rows]
    num_best_ptr,  # [rows] int32
    pairs_ptr,  # [rows, splits, PLACES] int64
    sums_ptr,  # [rows, splits] fp32
    num_better_ptr,  # [rows, splits] int32
    own_ptr,  # [rows] fp32, written
    ranks_ptr,  # [rows] int32, written
    best_ptr,  # [rows, MOST_BEST] fp32, written as far as the row wants
    best_ids_ptr,  # [rows, MOST_BEST] int64, written likewise
    row_stride,
    num_splits,
    SPLITS: tl.constexpr,  # the power of two above the number of splits
    PLACES: tl.constexpr,
    MOST_BEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    num_best = tl.load(num_best_ptr + row)
    if num_best >= 0:
        splits = tl.arange(0, SPLITS)
        mask = splits < num_splits
        places = row * num_splits + splits
        firsts = tl.load(pairs_ptr + places * PLACES, mask, NO_PAIR)  # (SPLITS)
        most = logit_of(tl.max(firsts, 0))
        shares = tl.where(mask, tl.exp(logit_of(firsts) - most), 0.0)
        log_sum = tl.log(tl.sum(tl.load(sums_ptr + places, mask, 0.0) * shares, 0))
        own = tl.load(logits_ptr + row * row_stride + tl.load(token_ids_ptr + row)).to(tl.float32)
        tl.store(own_ptr + row, (own - most) - log_sum)
        tl.store(ranks_ptr + row, 1 + tl.sum(tl.load(num_better_ptr + places, mask, 0), 0))
        ranks = tl.arange(0, PLACES)[None, :]
        pair_ptrs = pairs_ptr + places[:, None] * PLACES + ranks
        pairs = tl.load(pair_ptrs, mask[:, None] & (ranks < num_best), NO_PAIR)  # (SPLITS, PLACES)
        for rank in range(num_best):
            best = tl.max(tl.max(pairs, 1), 0)
            tl.store(best_ptr + row * MOST_BEST + rank, (logit_of(best) - most) - log_sum)
            tl.store(best_ids_ptr + row * MOST_BEST + rank, id_of(best))
            pairs = tl.where(pairs == best, NO_PAIR, pairs)


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """What is found, and what finding it needs: made once, for the most rows. Rows that do not ask are not written."""

    own: Tensor  # [rows] fp32
    ranks: Tensor  # [rows] int32, from 1 on
    best: Tensor  # [rows, MOST_BEST] fp32, descending
    best_ids: Tensor  # [rows, MOST_BEST] int64
    pairs: Tensor  # [rows, splits, 32] int64
    sums: Tensor  # [rows, splits] fp32
    num_better: Tensor  # [rows, splits] int32

    @classmethod
    def of(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> LogProbabilities:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(max_rows, *shape, dtype=dtype, device=device)

        splits = num_splits(vocab_size)
        return cls(
            own=empty(),
            ranks=empty(dtype=torch.int32),
            best=empty(MOST_BEST),
            best_ids=empty(MOST_BEST, dtype=torch.int64),
            pairs=empty(splits, _PLACES, dtype=torch.int64),
            sums=empty(splits),
            num_better=empty(splits, dtype=torch.int32),
        )


def log_probabilities(
    logits: Tensor,  # [rows, vocabulary], raw: before penalties, masks and temperature
    token_ids: Tensor,  # [rows] int32 or int64
    num_best: Tensor,  # [rows] int32, up to MOST_BEST and to the vocabulary; -1: the row does not ask
    into: LogProbabilities,  # of at least as many rows, written
) -> None:
    num_rows, vocab_size = logits.shape
    splits = num_splits(vocab_size)
    assert logits.stride(1) == 1, "a row's logits must follow each other"
    assert token_ids.shape == (num_rows,) and token_ids.is_contiguous(), f"tokens {tuple(token_ids.shape)}"
    assert num_best.shape == (num_rows,) and num_best.dtype == torch.int32 and num_best.is_contiguous()
    assert len(into.own) >= num_rows and into.sums.shape[1] == splits, (
        "made for another vocabulary or fewer rows"
    )
    if not num_rows:
        return
    asked = (logits, token_ids, num_best, into.pairs, into.sums, into.num_better)
    options = {"PLACES": _PLACES, "num_warps": _WARPS, **PINNED_OPTIONS}
    _split_scores_kernel[(num_rows, splits)](*asked, logits.stride(0), vocab_size, SPLIT=SPLIT, **options)
    _scores_kernel[(num_rows,)](
        *asked,
        into.own,
        into.ranks,
        into.best,
        into.best_ids,
        logits.stride(0),
        splits,
        SPLITS=triton.next_power_of_2(splits),
        MOST_BEST=MOST_BEST,
        **options,
    )


_TYPES = {
    "logits_ptr": "*fp32",
    "token_ids_ptr": "*i64",
    "num_best_ptr": "*i32",
    "pairs_ptr": "*i64",
    "sums_ptr": "*fp32",
    "num_better_ptr": "*i32",
    "row_stride": "i32",
}

COMPILED = (
    Compiled(
        name="log_probabilities of splits",
        kernel=_split_scores_kernel,
        types=_TYPES | {"vocab_size": "i32"},
        constexprs={"SPLIT": SPLIT, "PLACES": _PLACES},
        num_warps=_WARPS,
        aligned=("row_stride", "vocab_size"),
    ),
    Compiled(
        name="log_probabilities of rows",
        kernel=_scores_kernel,
        types=_TYPES
        | {
            "own_ptr": "*fp32",
            "ranks_ptr": "*i32",
            "best_ptr": "*fp32",
            "best_ids_ptr": "*i64",
            "num_splits": "i32",
        },
        constexprs={"SPLITS": 32, "PLACES": _PLACES, "MOST_BEST": MOST_BEST},
        num_warps=_WARPS,
        aligned=("row_stride", "num_splits"),
    ),
)
