"""kv[:, destination] = kv[:, source] for whole blocks, as `kernels/copy_blocks.py` means it, in a GPU's layout.

All reads come before all writes, so a destination may be another pair's source: a program takes the same few words of
every pair, and no other program touches them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

_SHAPE = {"PAIRS": 16, "WORDS": 256}  # 32 words for each of 128 threads


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])  # else each is compiled thrice, in traffic
def _copy_blocks_kernel(
    kv_ptr,  # [2, num_blocks, block_words] int32, written
    sources_ptr,  # [num_pairs]
    destinations_ptr,  # [num_pairs]
    num_pairs,
    num_blocks,
    block_words,
    PAIRS: tl.constexpr,  # at most
    WORDS: tl.constexpr,  # of a program
):
    offs_pair = tl.arange(0, PAIRS)[:, None]
    offs_word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)[None, :]
    mask_pair = offs_pair < num_pairs
    mask = mask_pair & (offs_word < block_words)
    first_block = tl.program_id(1).to(tl.int64) * num_blocks  # of the keys, or of the values
    source = first_block + tl.load(sources_ptr + offs_pair, mask_pair, 0).to(tl.int64)  # (PAIRS, 1)
    destination = first_block + tl.load(destinations_ptr + offs_pair, mask_pair, 0).to(tl.int64)
    words = tl.load(kv_ptr + source * block_words + offs_word, mask)  # (PAIRS, WORDS)
    tl.debug_barrier()  # no thread writes before all have read
    tl.store(kv_ptr + destination * block_words + offs_word, words, mask)


def copy_blocks(
    kv: Tensor,  # [2, num_blocks, kv_heads, block_size, head_dim], written
    sources: Tensor,  # [pairs] int64
    destinations: Tensor,  # [pairs] int64, each once
) -> None:
    num_pairs, num_blocks = len(sources), kv.shape[1]
    assert_packed("kv", kv, *kv.shape)
    assert_packed("sources", sources, num_pairs)
    assert_packed("destinations", destinations, num_pairs)
    words = kv.flatten(2).view(torch.int32)
    if num_pairs > _SHAPE["PAIRS"]:  # too many to be held by one program
        words.index_copy_(1, destinations, words.index_select(1, sources))
    elif num_pairs:
        block_words = words.shape[2]
        _copy_blocks_kernel[(triton.cdiv(block_words, _SHAPE["WORDS"]), 2)](
            words, sources, destinations, num_pairs, num_blocks, block_words, **_SHAPE, **PINNED_OPTIONS
        )


COMPILED = (
    Compiled(
        name="copy_blocks",
        kernel=_copy_blocks_kernel,
        types=dict.fromkeys(("sources_ptr", "destinations_ptr"), "*i64")
        | dict.fromkeys(("num_pairs", "num_blocks", "block_words"), "i32")
        | {"kv_ptr": "*i32"},
        constexprs=_SHAPE,
        aligned=("block_words",),
    ),
)
