"""How likely tokens were, their ranks, and the most likely tokens with theirs, as `kernels/log_probabilities.py` means
it and packs them; for the rows that ask.

    logprob(i) = (x_i - max x) - log Σ_j exp(x_j - max x)          rank(i) = 1 + #{ j : x_j > x_i }

Of tokens alike, the first ones. Splits are summed in a fixed order. Ranks compare logits, where a CPU compares
log-probabilities: those of unlike tokens may round to one number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import log_probabilities as meaning
from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed, assert_rows
from kernels.gpu.sampling.argmax import NO_PAIR, SPLIT, id_of, logit_of, num_splits, pairs_of
from kernels.gpu.sampling.rounds import DTYPES

_PLACES = 32  # the power of two above the alternatives that a row may ask for
_WARPS = 8

_LOGPROB = tl.constexpr(meaning.LOGPROB)
_RANK = tl.constexpr(meaning.RANK)
_BEST = tl.constexpr(meaning.BEST)
_BEST_IDS = tl.constexpr(meaning.BEST_IDS)
_NUM_SCORES = tl.constexpr(meaning.NUM_SCORES)


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
    out_ptr,  # [rows, NUM_SCORES] int32, written as far as the row wants
    row_stride,
    num_splits,
    SPLITS: tl.constexpr,  # the power of two above the number of splits
    PLACES: tl.constexpr,
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
        own_ptr = out_ptr + row * _NUM_SCORES
        tl.store(own_ptr + _LOGPROB, ((own - most) - log_sum).to(tl.int32, bitcast=True))
        tl.store(own_ptr + _RANK, 1 + tl.sum(tl.load(num_better_ptr + places, mask, 0), 0))
        ranks = tl.arange(0, PLACES)[None, :]
        pair_ptrs = pairs_ptr + places[:, None] * PLACES + ranks
        pairs = tl.load(pair_ptrs, mask[:, None] & (ranks < num_best), NO_PAIR)  # (SPLITS, PLACES)
        for rank in range(num_best):
            best = tl.max(tl.max(pairs, 1), 0)
            logprob = (logit_of(best) - most) - log_sum
            tl.store(own_ptr + _BEST + rank, logprob.to(tl.int32, bitcast=True))
            tl.store(own_ptr + _BEST_IDS + rank, id_of(best))
            pairs = tl.where(pairs == best, NO_PAIR, pairs)


@dataclass(frozen=True, slots=True)
class ScoringScratch:
    """What a call needs besides its arguments: made once, for the most rows."""

    pairs: Tensor  # [rows, splits, 32] int64
    sums: Tensor  # [rows, splits] fp32
    num_better: Tensor  # [rows, splits] int32

    @classmethod
    def of(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> ScoringScratch:
        splits = num_splits(vocab_size)
        return cls(
            pairs=torch.empty(max_rows, splits, _PLACES, dtype=torch.int64, device=device),
            sums=torch.empty(max_rows, splits, device=device),
            num_better=torch.empty(max_rows, splits, dtype=torch.int32, device=device),
        )


def log_probabilities(
    logits: Tensor,  # [rows, vocabulary], raw: before penalties, masks and temperature
    token_ids: Tensor,  # [rows] int32 or int64
    num_best: Tensor,  # [rows] int32, up to MOST_BEST and to the vocabulary; -1: the row does not ask
    scratch: ScoringScratch,  # of at least as many rows
    out: Tensor,  # [rows, NUM_SCORES] int32, written as far as rows ask
) -> None:
    num_rows, vocab_size = logits.shape
    splits = num_splits(vocab_size)
    assert_rows("logits", logits, vocab_size)
    assert num_best.dtype == out.dtype == torch.int32
    for name, column in (("tokens", token_ids), ("the numbers of alternatives", num_best)):
        assert_packed(name, column, num_rows)
    assert_packed("out", out, num_rows, meaning.NUM_SCORES)
    assert len(scratch.sums) >= num_rows and scratch.sums.shape[1] == splits, (
        "made for another vocabulary or fewer rows"
    )
    if not num_rows:
        return
    asked = (logits, token_ids, num_best, scratch.pairs, scratch.sums, scratch.num_better)
    options = {"PLACES": _PLACES, "num_warps": _WARPS, **PINNED_OPTIONS}
    _split_scores_kernel[(num_rows, splits)](*asked, logits.stride(0), vocab_size, SPLIT=SPLIT, **options)
    _scores_kernel[(num_rows,)](
        *asked, out, logits.stride(0), splits, SPLITS=triton.next_power_of_2(splits), **options
    )


_TYPES = {
    "token_ids_ptr": "*i64",
    "num_best_ptr": "*i32",
    "pairs_ptr": "*i64",
    "sums_ptr": "*fp32",
    "num_better_ptr": "*i32",
    "row_stride": "i32",
}

COMPILED = tuple(
    Compiled(
        name=f"log_probabilities of {name} {dtype}",
        kernel=kernel,
        types={"logits_ptr": f"*{dtype}", **_TYPES, **types},
        constexprs=constexprs | {"PLACES": _PLACES},
        num_warps=_WARPS,
        aligned=("row_stride", *aligned),
    )
    for dtype in DTYPES
    for name, kernel, types, constexprs, aligned in (
        ("splits", _split_scores_kernel, {"vocab_size": "i32"}, {"SPLIT": SPLIT}, ("vocab_size",)),
        ("rows", _scores_kernel, {"out_ptr": "*i32", "num_splits": "i32"}, {"SPLITS": 32}, ("num_splits",)),
    )
)
