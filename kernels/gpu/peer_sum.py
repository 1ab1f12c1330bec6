"""x = Σ x of every rank, in the order of the ranks, read over NVLink out of the ranks' own memory by one launch.

Each rank's region, which all ranks map: signals [PROGRAMS, ranks] int64, then two halves for what is to be summed.

    round += 1
    own half [round mod 2] = x          program by program
    tell every rank "round"             signals [program, own rank] of their regions
    wait for "round" of every rank      signals [program, every rank] of the own region
    x = Σ half [round mod 2] of rank 0, 1, 2 …     in fp32, rounded once

One wait is enough: a half is written again two rounds later, and whoever is told of the round between knows that its
teller has read that half, because it launched its next sum behind this one. Rounds only grow, so signals are never
taken back. All ranks add the same numbers in the same order: they get the same bits, whatever the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

PROGRAMS = 32  # at most: enough loads under way for NVLink's bandwidth, and few signals
MOST_RANKS = 8
SIGNAL_BYTES = PROGRAMS * MOST_RANKS * 8  # at a region's begin
SUMMED = (torch.bfloat16, torch.float16, torch.float32)
_BLOCK = 2048  # elements of a program's tile: a vector of 16 bytes for each of 256 threads, in bf16
_NUM_WARPS = 8
_ALIGNMENT = 16  # bytes, of all that is read and written in vectors


# Not for what differs between ranks, or between a trial and the real thing: whatever is launched has been tried out.
@triton.jit(do_not_specialize=["half_bytes", "rank", "polls_left", "fails_loudly"])
def _peer_sum_kernel(
    x_ptr,  # [num_elements], written
    regions_ptr,  # [RANKS] int64: where each rank's region begins, in this rank's addresses
    state_ptr,  # [3] int64: the last round, programs of this round that are done, whether nobody waits any more
    num_elements,
    half_bytes,  # of a region
    rank,
    polls_left,
    fails_loudly,  # whether a silent rank is an error of the device
    RANKS: tl.constexpr,
    PADDED: tl.constexpr,  # a power of two above
    STRIDE: tl.constexpr,  # between the signals of two programs
    DATA: tl.constexpr,  # bytes from a region's begin to its halves
    BLOCK: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    num_tiles = tl.cdiv(num_elements, BLOCK)
    round = tl.load(state_ptr) + 1  # of all programs the same: the last one of a round to end writes it
    data = DATA + (round % 2) * half_bytes
    element_ptr = tl.pointer_type(x_ptr.dtype.element_ty)
    signal_ptr = tl.pointer_type(tl.int64)
    own = tl.multiple_of((tl.load(regions_ptr + rank) + data).to(element_ptr), 16)
    for tile in range(program, num_tiles, num_programs):
        offs = tile * BLOCK + tl.arange(0, BLOCK)
        mask = offs < num_elements
        tl.store(own + offs, tl.load(x_ptr + offs, mask), mask)
    tl.debug_barrier()  # all threads have written before one of them tells

    offs_rank = tl.arange(0, PADDED)
    mask_rank = offs_rank < RANKS
    theirs = tl.load(regions_ptr + offs_rank, mask_rank, 0) + (program * STRIDE + rank) * 8  # (PADDED)
    tl.atomic_xchg(theirs.to(signal_ptr), round, mask_rank, sem="release", scope="sys")
    mine = tl.load(regions_ptr + rank) + (program * STRIDE + offs_rank) * 8
    # The end of waiting is asked for along with the signals: so all threads see the same of it.
    asked = tl.where(mask_rank, mine, (state_ptr + 2).to(tl.int64)).to(signal_ptr)
    missing, ended = tl.sum(mask_rank.to(tl.int32), 0), tl.full((), 0, tl.int64)
    while (missing > 0) & (ended == 0) & (polls_left >= 0):
        told = tl.atomic_add(asked, 0, offs_rank <= RANKS, sem="acquire", scope="sys")
        missing = tl.sum((mask_rank & (told < round)).to(tl.int32), 0)
        ended = tl.sum(tl.where(offs_rank == RANKS, told, 0), 0)
        polls_left -= 1
    if (missing > 0) & (ended == 0):
        tl.store(state_ptr + 2, 1)
        if fails_loudly != 0:
            tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()  # no thread reads before all have been told

    for tile in range(program, num_tiles, num_programs):
        offs = tile * BLOCK + tl.arange(0, BLOCK)
        mask = offs < num_elements
        total = tl.zeros((BLOCK,), tl.float32)
        for source in tl.static_range(RANKS):
            part = tl.multiple_of((tl.load(regions_ptr + source) + data).to(element_ptr), 16)
            total += tl.load(part + offs, mask, volatile=True).to(tl.float32)
        tl.store(x_ptr + offs, total.to(x_ptr.dtype.element_ty), mask)

    tl.debug_barrier()
    if tl.atomic_add(state_ptr + 1, 1) == num_programs - 1:
        tl.store(state_ptr + 1, 0)
        tl.store(state_ptr, round)


@dataclass(frozen=True, slots=True)
class PeerRegions:
    """What one rank sums with."""

    rank: int
    memory: tuple[Tensor, ...]  # every rank's region, as this rank has it
    half_bytes: int
    addresses: Tensor  # [ranks] int64, on the device: of `memory`
    state: Tensor  # [3] int64; once the last is 1, nobody waits and no sum is one

    @classmethod
    def over(cls, rank: int, memory: Sequence[Tensor], half_bytes: int) -> PeerRegions:
        """`memory`: [region_bytes(half_bytes)] uint8 each, zeros before any rank sums."""
        device = memory[rank].device
        addresses = torch.tensor([each.data_ptr() for each in memory], device=device)
        state = torch.zeros(3, dtype=torch.int64, device=device)
        return cls(rank, tuple(memory), half_bytes, addresses, state)


def region_bytes(half_bytes: int) -> int:
    assert half_bytes % _ALIGNMENT == 0, f"{half_bytes} bytes are no whole vectors"
    return SIGNAL_BYTES + 2 * half_bytes


def peer_sum(
    x: Tensor,  # [elements] float, written: the sum over all ranks
    regions: PeerRegions,
    max_polls: int,  # of the own signals, one and then about one a µs more, until a rank counts as silent
    fails_loudly: bool = True,
) -> None:
    """All ranks launch it, on as many elements. Each launch runs behind the last one's end: one stream for all of them.

    A silent rank ends the process's use of its device, or, unless `fails_loudly`, is told by `state[2]`.
    """
    num_ranks = len(regions.memory)
    assert x.dtype in SUMMED, f"{x.dtype} is not summed"
    assert_packed("x", x, *x.shape)
    assert 0 < x.numel() * x.element_size() <= regions.half_bytes, "a sum must fit half a region"
    assert 1 < num_ranks <= MOST_RANKS, f"{num_ranks} ranks have no signals"
    num_programs = min(triton.cdiv(x.numel(), _BLOCK), PROGRAMS)
    _peer_sum_kernel[(num_programs,)](
        x,
        regions.addresses,
        regions.state,
        x.numel(),
        regions.half_bytes,
        regions.rank,
        max_polls,
        int(fails_loudly),
        **_constants(num_ranks),
        num_warps=_NUM_WARPS,
        **PINNED_OPTIONS,
    )


def _constants(num_ranks: int) -> dict[str, int]:
    return {
        "RANKS": num_ranks,
        "PADDED": triton.next_power_of_2(num_ranks + 1),
        "STRIDE": MOST_RANKS,
        "DATA": SIGNAL_BYTES,
        "BLOCK": _BLOCK,
    }


COMPILED = tuple(
    Compiled(
        name=f"peer_sum {num_ranks} {element}",
        kernel=_peer_sum_kernel,
        types={"x_ptr": f"*{element}", "regions_ptr": "*i64", "state_ptr": "*i64"}
        | dict.fromkeys(("num_elements", "half_bytes", "rank", "polls_left", "fails_loudly"), "i32"),
        constexprs=_constants(num_ranks),
        num_warps=_NUM_WARPS,
        aligned=("num_elements",),
        targets=("sm_80", "sm_90", "sm_100"),
    )
    for num_ranks, element in ((2, "bf16"), (8, "bf16"), (4, "fp32"))
)
