"""Finds the least weight that a row's cuts keep, without sorting: min-p, top-k, top-p, in this order, as
`kernels/cut.py` means them. Part of `sample.py`.

    A = the largest key v with #{keys >= v} >= top_k          F(v) = Σ masses of the keys >= v
    least = the largest key v with F(v) >= top_p · F(A)       both only grow as v falls, so both can be searched for

A round of the search asks eight keys at once. The first rounds read the row, split over programs, until few tokens are
left in the range of keys, and those are gathered (`rounds.py`). Here one program a row goes on with them to the
last bit. Where more are left than there is room for (ties, or a very flat row) it reads the row instead: slower, with
the same result.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.sampling.argmax import best_pair, logit_of
from kernels.gpu.sampling.rounds import (
    DTYPES,
    GATHERED_TYPES,
    NUM_GATHERED,
    ROUNDS,
    STRIDE,
    TILE,
    TYPES,
    WARPS,
    cuts_of,
    key_at,
    narrow,
    num_reached,
    pick,
    range_after,
    tallied,
)
from kernels.gpu.sampling.weights import LEAST_KEY, SamplingRows, keys_at


@triton.jit
def _search(
    low,  # has reached the goal, as all below; at least two keys from `high`
    high,  # has not
    goal,  # float64
    by_count,  # whether the goal is a count, else a mass
    above,  # from which key on tokens are not looked at, their count, their mass
    gathered,  # pointer to [capacity] int32, how many there are, whether to read the row instead
    row,  # pointer to [vocab_size], vocab_size, and what makes keys of its logits
    TILE: tl.constexpr,
):
    """-> the largest key that reaches the goal, and the mass from it on."""
    end, count_above, mass_above = above
    gathered_ptr, num_gathered, overflowed = gathered
    logits_ptr, vocab_size, best, temperature, min_p = row
    num_source = tl.where(overflowed, vocab_size, num_gathered)
    mass = mass_above
    while high - low > 1:
        asked = key_at(low, high, tl.arange(0, 8), False)
        counts = tl.zeros((8, TILE), tl.int32)
        masses = tl.zeros((8, TILE), tl.int64)
        for begin in range(0, num_source, TILE):
            offs = begin + tl.arange(0, TILE)
            if overflowed:
                keys = keys_at(offs, logits_ptr, vocab_size, best, temperature, min_p)  # (TILE)
                keys = tl.where(keys < end, keys, 0)
            else:
                keys = tl.load(gathered_ptr + offs, offs < num_gathered, 0)  # (TILE)
            counts, masses = tallied(keys, asked, counts, masses)
        count_from = count_above + tl.sum(counts, 1)
        mass_from = mass_above + tl.sum(masses, 1)
        num_low = num_reached(tl.where(by_count, count_from, mass_from).to(tl.float64) >= goal)
        before = low
        low = key_at(before, high, num_low - 1, False)
        high = key_at(before, high, num_low, False)
        mass = pick(mass_from, num_low - 1, 0)
    return low, mass


@triton.jit
def _least_key_kernel(
    logits_ptr,  # [rows, vocab_size]
    pairs_ptr,  # [rows, splits] int64
    temperature_ptr,  # [rows] fp32
    min_p_ptr,  # [rows] fp32
    top_k_ptr,  # [rows] int32
    top_p_ptr,  # [rows] float64
    tallies_ptr,  # [rows, TALLIES] int64
    gathered_ptr,  # [rows, capacity] int32
    least_keys_ptr,  # [rows] int32, written
    row_stride,
    vocab_size,
    capacity,
    num_splits,
    ROUNDS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    top_k, top_p, searching = cuts_of(top_k_ptr, top_p_ptr, temperature_ptr, row)
    least = tl.full((), LEAST_KEY, tl.int32)
    if searching:
        best = logit_of(best_pair(pairs_ptr + row * num_splits, num_splits, 1, SPLITS))
        temperature, min_p = tl.load(temperature_ptr + row), tl.load(min_p_ptr + row)
        tallies_ptr += row * STRIDE
        least, high, count_high, mass_high, _, mass = range_after(tallies_ptr, top_k, top_p, ROUNDS)
        num_gathered = tl.load(tallies_ptr + NUM_GATHERED).to(tl.int32)
        above = (high, count_high, mass_high)
        gathered = (gathered_ptr + row * capacity, num_gathered, num_gathered > capacity)
        logits = (logits_ptr + row * row_stride, vocab_size, best, temperature, min_p)
        # For A, and from there for the mass: a loop, so that there is the code of one search.
        for stage in range(2):
            by_count = stage == 0
            if tl.where(by_count, top_k > 0, top_p < 1.0):
                goal = tl.where(by_count, top_k.to(tl.float64), top_p * mass.to(tl.float64))
                least, mass = _search(least, high, goal, by_count, above, gathered, logits, TILE)
    tl.store(least_keys_ptr + row, least)


def least_keys(
    logits: Tensor,  # [rows, vocabulary]
    pairs: Tensor,  # [rows, splits] int64
    rows: SamplingRows,
    tallies: Tensor,  # [at least rows, TALLIES] int64, scratch
    gathered: Tensor,  # [at least rows, capacity] int32, scratch
    out: Tensor,  # [at least rows] int32, written
) -> None:
    """Of rows that cut nothing off, the least key that can be drawn."""
    narrow(logits, pairs, rows, tallies, gathered)
    num_rows, num_splits = pairs.shape
    _least_key_kernel[(num_rows,)](
        logits,
        pairs,
        rows.temperature,
        rows.min_p,
        rows.top_k,
        rows.top_p,
        tallies,
        gathered,
        out,
        logits.stride(0),
        logits.shape[1],
        gathered.shape[1],
        num_splits,
        ROUNDS=ROUNDS,
        SPLITS=triton.next_power_of_2(num_splits),
        TILE=TILE,
        num_warps=WARPS,
        **PINNED_OPTIONS,
    )


COMPILED = tuple(
    Compiled(
        name=f"sample: least key {dtype}",
        kernel=_least_key_kernel,
        types={
            "logits_ptr": f"*{dtype}",
            "least_keys_ptr": "*i32",
            "num_splits": "i32",
            **TYPES,
            **GATHERED_TYPES,
        },
        constexprs={"ROUNDS": ROUNDS, "SPLITS": 32, "TILE": TILE},
        num_warps=WARPS,
        aligned=("row_stride", "vocab_size", "capacity", "num_splits"),
    )
    for dtype in DTYPES
)
