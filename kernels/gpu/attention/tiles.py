"""Attention of one tile of queries over a range of its row's keys: the inner loops of `paged_attention.py`.

    m' = max(m, max s)    p = exp(s - m')    l' = l exp(m - m') + Σ p    acc' = acc exp(m - m') + p v

for one tile of keys after the other (Milakov and Gimelshein 2018; Dao 2023). Tiles stand at multiples of BLOCK_N, so
that a query's arithmetic does not depend on who is computed with it: a tile that it does not see changes nothing, to
the bit, and whether a tile is masked must not show in the bits either. So what a compiler could round in two ways is
an explicit fused product.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.attention.combine import merge_split


@triton.jit
def attend_range(
    queries,  # (q, positions, slopes) of a tile: (BLOCK_M, BLOCK_D), (BLOCK_M) int32, (BLOCK_M) fp32
    pool,  # (k_ptr, v_ptr, table_ptr, block_stride): of the KV head, and the row's block table
    scoring,  # (score_scale, bias_scale, cap)
    seen,  # (first_key, start, last_position, window): any query's first key, the first and last query's position
    begin,  # of the keys, a multiple of BLOCK_N
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """(acc, m, l) with m in units of log2. What all queries see in full goes through a loop that masks nothing:

    begin ..masked, with a window.. full_begin ..seen by all.. full_end ..masked.. end
    """
    BLOCK_M: tl.constexpr = queries[0].shape[0]
    BLOCK_D: tl.constexpr = queries[0].shape[1]
    _, start, last_position, window = seen
    state = (
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )
    full_begin = begin
    if WINDOWED:
        inside = tl.maximum(last_position - window + BLOCK_N, 0) // BLOCK_N * BLOCK_N
        full_begin = tl.minimum(tl.maximum(inside, begin), end)
        state = _attend_tiles(
            state, queries, pool, scoring, seen, begin, full_begin,
            HEAD_DIM, BLOCK_SIZE, BLOCK_N, WINDOWED, CAPPED, ALIBI, True,
        )  # fmt: skip
    full_end = tl.maximum(tl.minimum((start + 1) // BLOCK_N * BLOCK_N, end), full_begin)
    state = _attend_tiles(
        state, queries, pool, scoring, seen, full_begin, full_end,
        HEAD_DIM, BLOCK_SIZE, BLOCK_N, WINDOWED, CAPPED, ALIBI, False,
    )  # fmt: skip
    return _attend_tiles(
        state, queries, pool, scoring, seen, full_end, end,
        HEAD_DIM, BLOCK_SIZE, BLOCK_N, WINDOWED, CAPPED, ALIBI, True,
    )  # fmt: skip


@triton.jit
def walk_splits(
    queries, pool, scoring, seen, begin, end,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
):  # fmt: skip
    """What programs side by side and their combination would give, to the bit."""
    acc = tl.zeros([queries[0].shape[0], queries[0].shape[1]], tl.float32)
    maximum = tl.full([queries[0].shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([queries[0].shape[0]], tl.float32)
    for split_begin in tl.range(begin // SPLIT * SPLIT, end, SPLIT):
        split_acc, split_maximum, split_total = attend_range(
            queries, pool, scoring, seen, tl.maximum(begin, split_begin), tl.minimum(end, split_begin + SPLIT),
            HEAD_DIM, BLOCK_SIZE, BLOCK_N, WINDOWED, CAPPED, ALIBI,
        )  # fmt: skip
        acc, maximum, total = merge_split(acc, maximum, total, split_acc, split_maximum, split_total)
    return acc, maximum, total


@triton.jit
def _attend_tiles(
    state, queries, pool, scoring, seen, begin, end,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    acc, maximum, total = state
    q, positions, slopes = queries
    k_ptr, v_ptr, table_ptr, block_stride = pool
    first_key, _, last_position, window = seen
    BLOCK_D: tl.constexpr = q.shape[1]
    SCALED: tl.constexpr = CAPPED or ALIBI is not None  # else the scale goes into a fused product
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    for key in tl.range(begin, end, BLOCK_N):
        keys = key + offs_n
        # Keys that no query sees are not read: an unwritten block may hold anything, and 0 · NaN is not 0.
        mask_n = (keys >= first_key) & (keys <= last_position) if MASKED else None
        if BLOCK_SIZE % BLOCK_N == 0:  # the tile lies in one block, within which 32 bits are enough
            block = tl.load(table_ptr + key // BLOCK_SIZE)
            offs_tile = block.to(tl.int64) * block_stride + key % BLOCK_SIZE * HEAD_DIM
            offs_kv = (offs_n * HEAD_DIM)[:, None] + offs_d
        else:
            blocks = tl.load(table_ptr + keys // BLOCK_SIZE, mask_n)
            offs_tile = 0
            offs_block = (offs_n if BLOCK_N % BLOCK_SIZE == 0 else keys) % BLOCK_SIZE
            offs_kv = (blocks.to(tl.int64) * block_stride + offs_block * HEAD_DIM)[:, None] + offs_d
        k = _widen(_load_tile(k_ptr + offs_tile, offs_kv, mask_n, HEAD_DIM), q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        if SCALED:
            scores = _shape_scores(scores, keys, positions, slopes, scoring, CAPPED, ALIBI)
        if MASKED:
            visible = keys[None, :] <= positions[:, None]
            if WINDOWED:
                visible &= keys[None, :] > positions[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
        largest = tl.max(scores, 1) if SCALED else tl.max(scores, 1) * scoring[0]
        new_maximum = tl.maximum(maximum, largest)
        finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)  # where nothing is seen yet
        shifted = scores - finite[:, None] if SCALED else tl.fma(scores, scoring[0], -finite[:, None])
        weights = tl.exp2(shifted)
        kept = tl.exp2(maximum - finite)
        total = tl.fma(total, kept, tl.sum(weights, 1))
        v = _widen(_load_tile(v_ptr + offs_tile, offs_kv, mask_n, HEAD_DIM), q.dtype)
        # (BLOCK_M, BLOCK_D)
        acc = tl.dot(weights.to(q.dtype), v, acc * kept[:, None], input_precision="ieee")
        maximum = new_maximum
    return acc, maximum, total


@triton.jit
def _load_tile(kv_ptr, offs_kv, mask_n, HEAD_DIM: tl.constexpr):  # -> (BLOCK_N, BLOCK_D)
    BLOCK_D: tl.constexpr = offs_kv.shape[1]
    mask_d = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    if mask_n is not None:
        return tl.load(kv_ptr + offs_kv, mask_n[:, None] & mask_d, 0.0)
    if BLOCK_D != HEAD_DIM:
        return tl.load(kv_ptr + offs_kv, tl.broadcast_to(mask_d, offs_kv.shape), 0.0)
    return tl.load(kv_ptr + offs_kv)


@triton.jit
def _widen(tile, dtype: tl.constexpr):
    """Of 8 bits, by way of 32: from fp16, where such numbers land first, sm_90 has no packed conversion to bf16. Exact
    either way."""
    return tile if tile.dtype == dtype else tile.to(tl.float32).to(dtype)


@triton.jit
def _shape_scores(
    products,  # (BLOCK_M, BLOCK_N) fp32, bare
    keys,  # (BLOCK_N)
    positions,  # (BLOCK_M)
    slopes,
    scoring,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
):  # -> (BLOCK_M, BLOCK_N) in units of log2
    score_scale, bias_scale, cap = scoring
    if CAPPED:  # cap · tanh(x) = cap - 2 cap / (exp(2x) + 1); the 2 is in the scale, log2(e) in both
        scores = tl.fma(1.0 / (tl.exp2(products * score_scale) + 1.0), -2.0 * cap, cap)
    else:
        scores = products * score_scale
    if ALIBI == "exact":
        distances = (keys[None, :] - positions[:, None]).to(tl.float32)
        scores = tl.fma(distances, slopes[:, None] * bias_scale, scores)
    if ALIBI == "bfloat16":  # of slopes that are rounded already
        biases = _round_to_bfloat16(slopes[:, None] * _round_to_bfloat16(keys.to(tl.float32))[None, :])
        scores = tl.fma(biases, bias_scale, scores)
    return scores


@triton.jit
def _round_to_bfloat16(x):  # fp32, finite -> fp32
    """To the nearest, of two to the even one; spelled out because triton's interpreter cuts off where devices round."""
    bits = x.to(tl.uint32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
