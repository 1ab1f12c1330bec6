"""Which experts a token goes through, and by what weights, as `choose_experts` of `kernels/experts.py` means it.

    p = softmax(scores);   chosen = the k largest, of several alike the first;   weight = p, or p / Σ of the chosen p

One program a row, which holds it as the pairs of `argmax.py`: k times the largest is taken out. So what is chosen are k
different experts that exist, whatever is in the row: those of a row of NaN are of no meaning, but harm nobody.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_rows
from kernels.gpu.sampling.argmax import NO_PAIR, id_of, logit_of, pairs_of

_WARPS = 1  # a row is 8 to 512 numbers


@triton.jit
def _choose_experts_kernel(
    scores_ptr,  # [tokens, num_experts]
    weights_ptr,  # [tokens, NUM_CHOSEN] fp32, written
    chosen_ptr,  # [tokens, NUM_CHOSEN] int32, written
    scores_stride,  # elements from one row to the next
    num_experts,
    NUM_CHOSEN: tl.constexpr,
    NORMALIZED: tl.constexpr,
    EXPERTS: tl.constexpr,  # the power of two above num_experts
    CHOSEN: tl.constexpr,  # and above NUM_CHOSEN
):
    row = tl.program_id(0).to(tl.int64)
    ids, offs = tl.arange(0, EXPERTS), tl.arange(0, CHOSEN)
    mask, mask_chosen = ids < num_experts, offs < NUM_CHOSEN
    scores = tl.load(scores_ptr + row * scores_stride + ids, mask, -float("inf")).to(tl.float32)  # (EXPERTS)
    pairs = tl.where(mask, pairs_of(scores, ids), NO_PAIR)
    greatest = logit_of(tl.max(pairs, 0))
    total = tl.sum(tl.exp(scores - greatest), 0)
    chosen = tl.full((CHOSEN,), NO_PAIR, tl.int64)
    for place in tl.static_range(NUM_CHOSEN):
        best = tl.max(pairs, 0)
        chosen = tl.where(offs == place, best, chosen)
        pairs = tl.where(pairs == best, NO_PAIR, pairs)
    weights = tl.where(mask_chosen, tl.exp(logit_of(chosen) - greatest), 0.0)
    weights /= tl.sum(weights, 0) if NORMALIZED else total
    tl.store(weights_ptr + row * NUM_CHOSEN + offs, weights, mask_chosen)
    tl.store(chosen_ptr + row * NUM_CHOSEN + offs, id_of(chosen), mask_chosen)


def choose_experts(
    scores: Tensor,  # [tokens, experts], the router's
    num_chosen: int,
    normalized: bool,
) -> tuple[Tensor, Tensor]:  # weights [tokens, num_chosen] fp32, experts [tokens, num_chosen] int32
    num_tokens, num_experts = scores.shape
    assert_rows("scores", scores, num_experts)
    assert 1 <= num_chosen <= num_experts, f"{num_chosen} of {num_experts} experts cannot be chosen"
    weights = scores.new_empty(num_tokens, num_chosen, dtype=torch.float32)
    chosen = scores.new_empty(num_tokens, num_chosen, dtype=torch.int32)
    if num_tokens:
        _choose_experts_kernel[(num_tokens,)](
            scores,
            weights,
            chosen,
            scores.stride(0),
            num_experts,
            **_constexprs(num_experts, num_chosen, normalized),
            num_warps=_WARPS,
            **PINNED_OPTIONS,
        )
    return weights, chosen


def _constexprs(num_experts: int, num_chosen: int, normalized: bool) -> dict[str, Any]:
    return {
        "NUM_CHOSEN": num_chosen,
        "NORMALIZED": normalized,
        "EXPERTS": triton.next_power_of_2(num_experts),
        "CHOSEN": triton.next_power_of_2(num_chosen),
    }


COMPILED = tuple(
    Compiled(
        name=f"choose_experts bf16 {num_chosen} of {num_experts}",
        kernel=_choose_experts_kernel,
        types={
            "scores_ptr": "*bf16",
            "weights_ptr": "*fp32",
            "chosen_ptr": "*i32",
            "scores_stride": "i32",
            "num_experts": "i32",
        },
        constexprs=_constexprs(num_experts, num_chosen, normalized=True),
        num_warps=_WARPS,
        aligned=("scores_stride", "num_experts") if num_experts % 16 == 0 else (),
    )
    for num_chosen, num_experts in ((2, 8), (8, 128))
)
