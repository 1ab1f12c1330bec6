"""Draws the next token of every row on the device, greedy and random rows side by side, without the host.

    token = argmax x                                                           where the temperature is 0, else
    token = min { i : Σ_{j <= i} mass_j > u · Σ_j mass_j },                    mass_j = 0 for what the cuts take away

as `kernels/cut.py` and `kernels/sample.py` mean it. u is the number that `kernels/counter_random.py` has for the row's
seed and position, to the bit, so a request draws from the same numbers on a CPU and on a GPU. Sums are exact (see
`weights.py`): no row's token depends on the others. Against the CPU only weights differ, by about 1e-6 of
themselves, which matters to a token whose weight or mass is that close to a bound.

Every launch has the same shape for the same number of rows, allocates nothing and reads nothing back, so a graph can
hold it. The row is read once for its maximum, two to four times more where it is cut, and once to place the draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed
from kernels.gpu.sampling.argmax import SPLIT, best_pair, id_of, logit_of, num_splits, split_pairs
from kernels.gpu.sampling.cut import least_keys
from kernels.gpu.sampling.rounds import DTYPES, TALLIES
from kernels.gpu.sampling.weights import MAX_VOCABULARY, SamplingRows, keys_at, masses_of

_CAPACITY = 1 << 14  # tokens of a row that a cut's search gathers; of more it reads the row again
_WARPS = 8


@triton.jit
def _splitmix64(x):  # uint64
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _share(total, seed, position):  # int64 all: floor(u · total)
    bits = _splitmix64(_splitmix64(seed.to(tl.uint64)) + position.to(tl.uint64))
    u = (bits >> 16) << 16  # 48 bits, behind a binary point in front of them
    return tl.umulhi(u, total.to(tl.uint64)).to(tl.int64)


@triton.jit
def _kept_masses(logits_ptr, begin, vocab_size, best, temperature, min_p, least_key, SPLIT: tl.constexpr):
    keys = keys_at(begin + tl.arange(0, SPLIT), logits_ptr, vocab_size, best, temperature, min_p)  # (SPLIT)
    return masses_of(tl.where(keys >= least_key, keys, 0))


@triton.jit
def _split_masses_kernel(
    logits_ptr,  # [rows, vocab_size]
    pairs_ptr,  # [rows, splits] int64
    temperature_ptr,  # [rows] fp32
    min_p_ptr,  # [rows] fp32
    least_keys_ptr,  # [rows] int32
    masses_ptr,  # [rows, splits] int64, written for rows that are not greedy
    row_stride,
    vocab_size,
    SPLITS: tl.constexpr,  # the power of two above the number of splits
    SPLIT: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_splits = tl.num_programs(1)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0.0:
        best = logit_of(best_pair(pairs_ptr + row * num_splits, num_splits, 1, SPLITS))
        min_p, least_key = tl.load(min_p_ptr + row), tl.load(least_keys_ptr + row)
        masses = _kept_masses(
            logits_ptr + row * row_stride, split * SPLIT, vocab_size,
            best, temperature, min_p, least_key, SPLIT,
        )  # fmt: skip
        tl.store(masses_ptr + row * num_splits + split, tl.sum(masses, 0))


@triton.jit
def _draw_kernel(
    logits_ptr,  # [rows, vocab_size]
    pairs_ptr,  # [rows, splits] int64
    temperature_ptr,  # [rows] fp32
    min_p_ptr,  # [rows] fp32
    seed_ptr,  # [rows] int64
    position_ptr,  # [rows]
    least_keys_ptr,  # [rows] int32
    masses_ptr,  # [rows, splits] int64
    out_ptr,  # [rows], written
    row_stride,
    vocab_size,
    num_splits,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    pair = best_pair(pairs_ptr + row * num_splits, num_splits, 1, SPLITS)
    token = id_of(pair)
    if temperature > 0.0:
        splits = tl.arange(0, SPLITS)
        masses = tl.load(masses_ptr + row * num_splits + splits, splits < num_splits, 0)
        sums = tl.cumsum(masses, 0)
        total = tl.sum(masses, 0)
        target = _share(total, tl.load(seed_ptr + row), tl.load(position_ptr + row).to(tl.int64))
        split = tl.sum((sums <= target).to(tl.int32), 0)
        if total > 0:  # else nothing is possible, as in a row of NaN
            min_p, least_key = tl.load(min_p_ptr + row), tl.load(least_keys_ptr + row)
            before = tl.sum(tl.where(splits < split, masses, 0), 0)
            inner = _kept_masses(
                logits_ptr + row * row_stride, split * SPLIT, vocab_size,
                logit_of(pair), temperature, min_p, least_key, SPLIT,
            )  # fmt: skip
            token = split * SPLIT + tl.sum((before + tl.cumsum(inner, 0) <= target).to(tl.int32), 0)
    tl.store(out_ptr + row, token)


@dataclass(frozen=True, slots=True)
class SamplingScratch:
    """What a call needs besides its arguments: made once, for the most rows."""

    pairs: Tensor  # [rows, splits] int64
    masses: Tensor  # [rows, splits] int64
    tallies: Tensor  # [rows, TALLIES] int64
    gathered: Tensor  # [rows, capacity] int32
    least_keys: Tensor  # [rows] int32

    @classmethod
    def of(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> SamplingScratch:
        assert vocab_size <= MAX_VOCABULARY, f"at most {MAX_VOCABULARY} tokens can be drawn from"

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(max_rows, width, dtype=dtype, device=device)

        splits = num_splits(vocab_size)
        return cls(
            pairs=empty(splits, torch.int64),
            masses=empty(splits, torch.int64),
            tallies=empty(TALLIES, torch.int64),
            gathered=empty(min(_CAPACITY, vocab_size), torch.int32),
            least_keys=empty(1, torch.int32).view(-1),
        )


def sample(
    logits: Tensor,  # [rows, vocabulary], not changed
    rows: SamplingRows,  # of at least as many rows
    scratch: SamplingScratch,
    out: Tensor,  # [rows] int32 or int64, written
) -> None:
    num_rows, vocab_size = logits.shape
    rows.check(num_rows)
    assert_packed("out", out, num_rows)
    if not num_rows:
        return
    pairs = split_pairs(logits, scratch.pairs)
    least_keys(logits, pairs, rows, scratch.tallies, scratch.gathered, scratch.least_keys)
    splits, stride = pairs.shape[1], logits.stride(0)
    shape = {"SPLITS": triton.next_power_of_2(splits), "SPLIT": SPLIT}
    _split_masses_kernel[(num_rows, splits)](
        logits, pairs, rows.temperature, rows.min_p, scratch.least_keys, scratch.masses, stride, vocab_size,
        **shape, num_warps=_WARPS, **PINNED_OPTIONS,
    )  # fmt: skip
    _draw_kernel[(num_rows,)](
        logits, pairs, rows.temperature, rows.min_p, rows.seed, rows.position, scratch.least_keys, scratch.masses,
        out, stride, vocab_size, splits, **shape, num_warps=_WARPS, **PINNED_OPTIONS,
    )  # fmt: skip


_TYPES = {
    "pairs_ptr": "*i64",
    "temperature_ptr": "*fp32",
    "min_p_ptr": "*fp32",
    "least_keys_ptr": "*i32",
    "masses_ptr": "*i64",
    "row_stride": "i32",
    "vocab_size": "i32",
}
_DRAW_TYPES = {"seed_ptr": "*i64", "position_ptr": "*i64", "out_ptr": "*i64", "num_splits": "i32"}

COMPILED = tuple(
    Compiled(
        name=f"sample: {name} {dtype}",
        kernel=kernel,
        types={"logits_ptr": f"*{dtype}", **_TYPES, **types},
        constexprs={"SPLITS": 32, "SPLIT": SPLIT},
        num_warps=_WARPS,
        aligned=("row_stride", "vocab_size", "num_splits"),
    )
    for dtype in DTYPES
    for name, kernel, types in (
        ("masses of splits", _split_masses_kernel, {}),
        ("draw", _draw_kernel, _DRAW_TYPES),
    )
)
