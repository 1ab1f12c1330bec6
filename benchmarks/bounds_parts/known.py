"""Attention without pages, masks or splits, as tutorials have it: what is published of such kernels shows how far
the model can be believed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.compilation import Compiled


@triton.jit
def _plain_attention_kernel(
    q_ptr,  # [heads, tokens, 128]
    k_ptr,
    v_ptr,
    out_ptr,  # [heads, tokens, 128], written
    num_tokens,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m, offs_n, offs_d = (
        tl.arange(0, BLOCK_M)[:, None],
        tl.arange(0, BLOCK_N)[:, None],
        tl.arange(0, 128)[None, :],
    )
    head = tl.program_id(1).to(tl.int64) * num_tokens * 128
    rows = head + tl.program_id(0) * BLOCK_M * 128 + offs_m * 128 + offs_d
    q = tl.load(q_ptr + rows)  # (BLOCK_M, 128)
    k_ptrs, v_ptrs = k_ptr + head + offs_n * 128 + offs_d, v_ptr + head + offs_n * 128 + offs_d
    acc = tl.zeros([BLOCK_M, 128], tl.float32)
    maximum, total = tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
    for _ in tl.range(0, num_tokens, BLOCK_N):
        scores = tl.dot(q, tl.trans(tl.load(k_ptrs))) * scale  # (BLOCK_M, BLOCK_N)
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights, kept = tl.exp2(scores - new_maximum[:, None]), tl.exp2(maximum - new_maximum)
        total = total * kept + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), tl.load(v_ptrs), acc * kept[:, None])
        maximum = new_maximum
        k_ptrs += BLOCK_N * 128
        v_ptrs += BLOCK_N * 128
    tl.store(out_ptr + rows, (acc / total[:, None]).to(q.dtype))


PLAIN_ATTENTION = Compiled(
    name="plain attention bf16, M128 N64 D128",
    kernel=_plain_attention_kernel,
    types=dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), "*bf16")
    | {"num_tokens": "i32", "scale": "fp32"},
    constexprs={"BLOCK_M": 128, "BLOCK_N": 64},
    num_warps=8,
    aligned=("num_tokens",),
)
