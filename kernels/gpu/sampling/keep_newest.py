"""Keeps the tokens that a step drew by their rows, as `kernels/keep_newest.py` means it: so the next step feeds them
without the host having seen them.

    newest_tokens[rows[i]] = drawn[i]                       a row of -1 is padding
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_packed

_BLOCK = 128  # batch rows of a program, one for each thread


@triton.jit(do_not_specialize=["batch"])  # else each is compiled thrice, in traffic
def _keep_newest_kernel(
    drawn_ptr,  # [batch]
    rows_ptr,  # [batch], -1: padding
    newest_ptr,  # [rows], written
    batch,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + offs, offs < batch, -1)  # (BLOCK)
    tl.store(newest_ptr + row, tl.load(drawn_ptr + offs, row >= 0, 0), row >= 0)


def keep_newest(
    drawn: Tensor,  # [batch] int32 or int64, the tokens drawn after each batch row
    rows: Tensor,  # [batch] int32, each once; -1: padding
    newest_tokens: Tensor,  # [rows] int32 or int64, written
) -> None:
    batch = len(rows)
    assert_packed("drawn", drawn, batch)
    assert_packed("rows", rows, batch)
    assert_packed("newest_tokens", newest_tokens, len(newest_tokens))
    _keep_newest_kernel[(triton.cdiv(batch, _BLOCK),)](
        drawn, rows, newest_tokens, batch, BLOCK=_BLOCK, **PINNED_OPTIONS
    )


COMPILED = (
    Compiled(
        name="keep_newest",
        kernel=_keep_newest_kernel,
        types={"drawn_ptr": "*i64", "rows_ptr": "*i32", "newest_ptr": "*i64", "batch": "i32"},
        constexprs={"BLOCK": _BLOCK},
    ),
)
