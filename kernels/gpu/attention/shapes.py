"""Which shapes the attention kernel is compiled in, by device and head: chosen from what they compile to, as listed in
`configurations.py`. None of them was measured on a device yet.
"""

from __future__ import annotations

import torch
import triton

from kernels.gpu.attention.plan import AttentionShape

# A decoding row's splits keep 132 processors busy from 17k tokens on with 8 KV heads; a chunk's partial results are
# larger by its queries, so that longer splits are better. Where all rows are of one shape, something between.
DECODE_SPLIT = 512
PREFILL_SPLIT = 2048
ONE_SHAPE_SPLIT = 1024

# Groups of warps make products of 64 rows there, and their accumulators leave room for wide tiles.
_WIDE_TARGETS = ("sm_90", "sm_100")
# The keys of a tile wait for the number of their block, which takes every other stage: of 5, two tiles are on their way
# while one is worked on, of 3 none. On gfx942 that is more than its shared memory.
_STAGES = {"sm_80": 5, "sm_90": 5, "sm_100": 5, "gfx942": 3}


def target_of(device: torch.device) -> str:
    """The target whose shapes suit a device; a CPU interprets any."""
    if device.type == "cpu":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    # Graphics cards of later generations have the instructions of sm_80 too.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def attention_shapes(
    target: str,
    group: int,  # query heads that share a KV head
    head_dim: int,
    dtype: torch.dtype,
    deterministic: bool,
    fp8_kv: bool = False,  # keys and values are widened in registers
) -> tuple[AttentionShape, AttentionShape]:
    """Of rows that decode, and of others: equal if `deterministic`."""
    if dtype == torch.float32:  # no matrix instruction keeps its precision
        shape = AttentionShape(_rows(group, 16), 32, 4, 2, ONE_SHAPE_SPLIT)
        return shape, shape
    if deterministic:
        shape = _any_rows(target, group, head_dim, fp8_kv)
        return shape, shape
    prefill = _many_rows(target, _rows(group, 64 if head_dim > 128 else 128), head_dim, PREFILL_SPLIT, fp8_kv)
    if group > 32:
        return _many_rows(target, _rows(group, 64), head_dim, DECODE_SPLIT, fp8_kv), prefill
    block_n, num_warps = (32 if head_dim > 128 else 64), (8 if fp8_kv and target == "gfx942" else 4)
    return AttentionShape(_rows(group, 16), block_n, num_warps, _STAGES[target], DECODE_SPLIT), prefill


def _any_rows(target: str, group: int, head_dim: int, fp8_kv: bool) -> AttentionShape:
    """Two sums of results at a time, one to be merged into the other: of wide heads, only 32 rows fit the registers."""
    block_m = _rows(group, 32 if head_dim > 128 else 64)
    if target == "sm_90" and block_m == 64:
        # One group of warps, so that no product is made twice; narrow tiles, so that two programs fit a processor.
        return AttentionShape(block_m, 32, 4, _STAGES[target], ONE_SHAPE_SPLIT)
    return _many_rows(target, block_m, head_dim, ONE_SHAPE_SPLIT, fp8_kv)


def _many_rows(target: str, block_m: int, head_dim: int, split_tokens: int, fp8_kv: bool) -> AttentionShape:
    wide = target in _WIDE_TARGETS
    block_n = 64 if wide and head_dim <= 128 else 32
    if target == "gfx942" and fp8_kv and head_dim > 128:
        block_n = 16  # what widens more keys than these does not fit the registers
    num_stages = _STAGES[target]
    if head_dim > 128 and (fp8_kv or not wide):
        num_stages = 3  # more spill, or are more than a graphics card's shared memory
    return AttentionShape(block_m, block_n, 8, num_stages, split_tokens)


def _rows(group: int, least: int) -> int:
    block_m: int = max(least, triton.next_power_of_2(group))
    return block_m
