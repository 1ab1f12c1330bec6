"""What a token's experts say, added up by their weights: the end of `kernels/experts.py`.

    out[t] = Σ_c weights[t, c] · pairs[t · num_chosen + c]        choices in ascending order, in fp32, rounded once

A row's bits depend on nothing beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

_BLOCK = 1024  # numbers of a program: a vector of 16 bytes for each of 128 threads, in bf16


@triton.jit
def _sum_of_experts_kernel(
    pairs_ptr,  # [tokens · NUM_CHOSEN, hidden]
    weights_ptr,  # [tokens, NUM_CHOSEN] fp32
    out_ptr,  # [tokens, hidden], written
    hidden,
    NUM_CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < hidden
    sums = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        pair = token * NUM_CHOSEN + choice
        said = tl.load(pairs_ptr + pair * hidden + offs, mask, 0.0).to(tl.float32)
        sums += tl.load(weights_ptr + pair) * said
    tl.store(out_ptr + token * hidden + offs, sums, mask)


def sum_of_experts(
    pairs: Tensor,  # [tokens · num_chosen, hidden]
    weights: Tensor,  # [tokens, num_chosen] fp32
) -> Tensor:  # [tokens, hidden]
    (num_tokens, num_chosen), hidden = weights.shape, pairs.shape[1]
    assert_packed("pairs", pairs, num_tokens * num_chosen, hidden)
    assert_packed("weights", weights, num_tokens, num_chosen)
    out = pairs.new_empty(num_tokens, hidden)
    if num_tokens:
        _sum_of_experts_kernel[(num_tokens, triton.cdiv(hidden, _BLOCK))](
            pairs, weights, out, hidden, NUM_CHOSEN=num_chosen, BLOCK=_BLOCK, **PINNED_OPTIONS
        )
    return out


COMPILED = tuple(
    Compiled(
        name=f"sum_of_experts bf16 {num_chosen}",
        kernel=_sum_of_experts_kernel,
        types={"pairs_ptr": "*bf16", "weights_ptr": "*fp32", "out_ptr": "*bf16", "hidden": "i32"},
        constexprs={"NUM_CHOSEN": num_chosen, "BLOCK": _BLOCK},
        aligned=("hidden",),
    )
    for num_chosen in (2, 8)
)
