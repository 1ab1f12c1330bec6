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
        # Two sums of results at a time, one to be merged into the other: of wide heads, only 32 rows fit the registers.
        shape = _many_rows(
            target, _rows(group, 32 if head_dim > 128 else 64), head_dim, ONE_SHAPE_SPLIT, fp8_kv
        )
        return shape, shape
    prefill = _many_rows(target, _rows(group, 64 if head_dim > 128 else 128), head_dim, PREFILL_SPLIT, fp8_kv)
    if group > 32:
        return _many_rows(target, _rows(group, 64), head_dim, DECODE_SPLIT, fp8_kv), prefill
    block_n, num_warps = (32 if head_dim > 128 else 64), (8 if fp8_kv else 4)
    return AttentionShape(_rows(group, 16), block_n, num_warps, 3, DECODE_SPLIT), prefill


def _many_rows(target: str, block_m: int, head_dim: int, split_tokens: int, fp8_kv: bool) -> AttentionShape:
    wide = target in _WIDE_TARGETS
    block_n = 64 if wide and head_dim <= 128 else 32
    if target == "gfx942" and fp8_kv and head_dim > 128:
        block_n = 16  # what widens more keys than these does not fit the registers
    padded = head_dim.bit_count() > 1  # its masks take the registers that a third stage would
    return AttentionShape(block_m, block_n, 8, 2 if padded and not wide else 3, split_tokens)


def _rows(group: int, least: int) -> int:
    block_m: int = max(least, triton.next_power_of_2(group))
    return block_m
