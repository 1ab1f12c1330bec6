"""Narrows the range of keys in which a row's cuts end, until few tokens are left in it, and gathers those.

Part of `cut.py`, which says what is searched for. A round reads the row, split over programs, and asks eight
keys how many tokens, and what mass, lie from them on. What that leaves of the range every program works out by itself
from the tallies of the rounds before; a round that is not needed is not made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.sampling.argmax import SPLIT, best_pair, logit_of
from kernels.gpu.sampling.weights import LEAST_KEY, ONE_KEY, SamplingRows, keys_at, masses_of

ROUNDS = 3  # at most, that read the row: each costs a pass over it, and leaves an eighth of the range
TALLIES = 16 * ROUNDS + 1  # of a row: eight counts and eight masses a round; how many tokens were gathered
TILE = 512
WARPS = 8

_FEW = tl.constexpr(TILE)  # tokens, with which no more rounds are made
NUM_GATHERED = tl.constexpr(16 * ROUNDS)
STRIDE = tl.constexpr(TALLIES)


@triton.jit
def cuts_of(top_k_ptr, top_p_ptr, temperature_ptr, row):  # -> top_k, top_p, whether a search has to be made
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    return top_k, top_p, (tl.load(temperature_ptr + row) > 0.0) & ((top_k > 0) | (top_p < 1.0))


@triton.jit
def pick(values, place, otherwise):  # (8), scalar, scalar: at place 8
    return tl.where(place < 8, tl.sum(tl.where(tl.arange(0, 8) == place, values, 0), 0), otherwise)


@triton.jit
def num_reached(reached):  # (8) bool, true and then false; the first is taken for true
    return tl.maximum(tl.sum(reached.to(tl.int32), 0), 1)


@triton.jit
def key_at(low, high, place, FIRST: tl.constexpr):
    """The key that a round asks at a place from 0, which is `low`, to 7; and at 8, which is `high`."""
    if FIRST:  # ever closer towards the top, where most cuts are
        below = 8 - place
        return high - below * below * ((high - low) // 64)
    else:
        return low + ((high - low).to(tl.int64) * place // 8).to(tl.int32)


@triton.jit
def tallied(keys, asked, counts, masses):  # (TILE), (8), (8, TILE), (8, TILE)
    """A thread holds all eight answers of a key, and adds up its own: sums across threads are made once, at the end."""
    reached = keys[None, :] >= asked[:, None]
    return counts + reached.to(tl.int32), masses + tl.where(reached, masses_of(keys)[None, :], 0)


@triton.jit
def range_after(tallies_ptr, top_k, top_p, ROUNDS: tl.constexpr):
    """A >= low and least < high, as close as the tallies of some rounds tell.

    -> low, high, how many tokens lie from `high` on, their mass, how many lie between, and the mass of all.
    """
    low, high = tl.full((), LEAST_KEY, tl.int32), tl.full((), ONE_KEY + 1, tl.int32)
    count_high, mass_high = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    num_between, total = tl.full((), _FEW + 1, tl.int64), tl.full((), 0, tl.int64)
    for done in tl.static_range(ROUNDS):
        if num_between > _FEW:
            counts = tl.load(tallies_ptr + 16 * done + tl.arange(0, 8))
            masses = tl.load(tallies_ptr + 16 * done + 8 + tl.arange(0, 8))
            if done == 0:
                total = pick(masses, 0, 0)
            enough = masses.to(tl.float64) >= top_p * total.to(tl.float64)
            num_low = num_reached(tl.where(top_k > 0, counts >= top_k, enough))
            num_high = num_low
            if (top_k > 0) & (top_p < 1.0):
                # The mass from A on is not known yet, only that it is no less than this.
                mass = pick(masses, num_low, mass_high)
                num_high = num_reached(masses.to(tl.float64) >= top_p * mass.to(tl.float64))
            count_high = pick(counts, num_high, count_high)
            mass_high = pick(masses, num_high, mass_high)
            num_between = pick(counts, num_low - 1, 0) - count_high
            before = low
            low = key_at(before, high, num_low - 1, done == 0)
            high = key_at(before, high, num_high, done == 0)
    return low, high, count_high, mass_high, num_between, total


@triton.jit
def _tally_kernel(
    logits_ptr,  # [rows, vocab_size]
    pairs_ptr,  # [rows, splits] int64, of `argmax.py`
    temperature_ptr,  # [rows] fp32
    min_p_ptr,  # [rows] fp32
    top_k_ptr,  # [rows] int32
    top_p_ptr,  # [rows] float64
    tallies_ptr,  # [rows, TALLIES] int64, added to
    row_stride,
    vocab_size,
    DONE: tl.constexpr,  # rounds before this one
    SPLITS: tl.constexpr,  # the power of two above the number of splits
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_splits = tl.num_programs(1)
    top_k, top_p, searching = cuts_of(top_k_ptr, top_p_ptr, temperature_ptr, row)
    if searching:
        best = logit_of(best_pair(pairs_ptr + row * num_splits, num_splits, 1, SPLITS))
        temperature, min_p = tl.load(temperature_ptr + row), tl.load(min_p_ptr + row)
        tallies_ptr += row * STRIDE
        low, high, _, _, num_between, _ = range_after(tallies_ptr, top_k, top_p, DONE)
        if num_between > _FEW:
            asked = key_at(low, high, tl.arange(0, 8), DONE == 0)
            counts = tl.zeros((8, TILE), tl.int32)
            masses = tl.zeros((8, TILE), tl.int64)
            end = tl.minimum((split + 1) * SPLIT, vocab_size)
            for begin in tl.range(split * SPLIT, end, TILE, num_stages=6):
                ids = begin + tl.arange(0, TILE)
                keys = keys_at(ids, logits_ptr + row * row_stride, vocab_size, best, temperature, min_p)
                counts, masses = tallied(keys, asked, counts, masses)
            round_ptrs = tallies_ptr + 16 * DONE + tl.arange(0, 8)
            tl.atomic_add(round_ptrs, tl.sum(counts, 1).to(tl.int64), sem="relaxed")
            tl.atomic_add(round_ptrs + 8, tl.sum(masses, 1), sem="relaxed")


@triton.jit
def _gather_kernel(
    logits_ptr,  # [rows, vocab_size]
    pairs_ptr,  # [rows, splits] int64
    temperature_ptr,  # [rows] fp32
    min_p_ptr,  # [rows] fp32
    top_k_ptr,  # [rows] int32
    top_p_ptr,  # [rows] float64
    tallies_ptr,  # [rows, TALLIES] int64, added to
    gathered_ptr,  # [rows, capacity] int32, written, in any order
    row_stride,
    vocab_size,
    capacity,
    ROUNDS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_splits = tl.num_programs(1)
    top_k, top_p, searching = cuts_of(top_k_ptr, top_p_ptr, temperature_ptr, row)
    if searching:
        best = logit_of(best_pair(pairs_ptr + row * num_splits, num_splits, 1, SPLITS))
        temperature, min_p = tl.load(temperature_ptr + row), tl.load(min_p_ptr + row)
        tallies_ptr += row * STRIDE
        low, high, _, _, _, _ = range_after(tallies_ptr, top_k, top_p, ROUNDS)
        ids = split * SPLIT + tl.arange(0, SPLIT)
        keys = keys_at(ids, logits_ptr + row * row_stride, vocab_size, best, temperature, min_p)
        inside = (keys >= low) & (keys < high)
        places = tl.cumsum(inside.to(tl.int32), 0)
        num_inside = tl.max(places, 0)
        if num_inside > 0:
            begin = tl.atomic_add(tallies_ptr + NUM_GATHERED, num_inside.to(tl.int64), sem="relaxed")
            places += begin.to(tl.int32) - 1
            tl.store(gathered_ptr + row * capacity + places, keys, inside & (places < capacity))


def narrow(
    logits: Tensor,  # [rows, vocabulary]
    pairs: Tensor,  # [rows, splits] int64, of `argmax.py`
    rows: SamplingRows,
    tallies: Tensor,  # [at least rows, TALLIES] int64, written
    gathered: Tensor,  # [at least rows, capacity] int32, written, in any order
) -> None:
    grid = pairs.shape
    columns = (rows.temperature, rows.min_p, rows.top_k, rows.top_p)
    options: Mapping[str, Any] = {
        "SPLITS": triton.next_power_of_2(grid[1]),
        "SPLIT": SPLIT,
        "num_warps": WARPS,
        **PINNED_OPTIONS,
    }
    stride, vocab_size = logits.stride(0), logits.shape[1]
    tallies.zero_()
    for done in range(ROUNDS):
        _tally_kernel[grid](
            logits, pairs, *columns, tallies, stride, vocab_size, DONE=done, TILE=TILE, **options
        )
    capacity = gathered.shape[1]
    _gather_kernel[grid](
        logits, pairs, *columns, tallies, gathered, stride, vocab_size, capacity, ROUNDS=ROUNDS, **options
    )


TYPES = {
    "pairs_ptr": "*i64",
    "temperature_ptr": "*fp32",
    "min_p_ptr": "*fp32",
    "top_k_ptr": "*i32",
    "top_p_ptr": "*fp64",
    "tallies_ptr": "*i64",
    "row_stride": "i32",
    "vocab_size": "i32",
}
GATHERED_TYPES = {"gathered_ptr": "*i32", "capacity": "i32"}
DTYPES = ("bf16", "fp32")  # of logits: as a model makes them, and as passes over them leave them


def _compiled(name: str, kernel: object, types: Mapping[str, str], constexprs: Mapping[str, int]) -> Compiled:
    return Compiled(
        name=f"sample: {name}",
        kernel=kernel,
        types={**TYPES, **types},
        constexprs={"SPLITS": 32, "SPLIT": SPLIT, **constexprs},
        num_warps=WARPS,
        aligned=("row_stride", "vocab_size", "capacity"),
    )


COMPILED = tuple(
    compiled
    for dtype in DTYPES
    for compiled in (
        *(
            _compiled(
                f"tally of round {done} {dtype}",
                _tally_kernel,
                {"logits_ptr": f"*{dtype}"},
                {"DONE": done, "TILE": TILE},
            )
            for done in range(ROUNDS)
        ),
        _compiled(
            f"gathering {dtype}",
            _gather_kernel,
            {"logits_ptr": f"*{dtype}", **GATHERED_TYPES},
            {"ROUNDS": ROUNDS},
        ),
    )
)
