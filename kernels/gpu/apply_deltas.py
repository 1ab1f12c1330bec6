"""table[row, column] = value for a few places of a resident table, as `kernels/apply_deltas.py` means it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.compilation import PINNED_OPTIONS, Compiled
from kernels.gpu.row_block import assert_rows

_BLOCK = 128  # deltas of a program, one for each thread


@triton.jit(do_not_specialize=["deltas_stride", "num_deltas"])  # else each is compiled thrice, in traffic
def _apply_deltas_kernel(
    table_ptr,  # [rows, columns], written
    deltas_ptr,  # [3, num_deltas]: rows, columns, values
    table_stride,  # elements from one row to the next
    deltas_stride,  # elements from the rows to the columns to the values
    num_deltas,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(deltas_ptr + offs, offs < num_deltas, -1).to(tl.int64)  # (BLOCK), as all that follow
    mask = row >= 0
    column = tl.load(deltas_ptr + deltas_stride + offs, mask, 0)
    value = tl.load(deltas_ptr + 2 * deltas_stride + offs, mask, 0)
    tl.store(table_ptr + row * table_stride + column, value, mask)


def apply_deltas(
    table: Tensor,  # [rows, columns] int32, written
    deltas: Tensor,  # [3, deltas] int32: rows, columns, values; no place twice; row -1: padding
) -> None:
    num_deltas = deltas.shape[1]
    assert len(deltas) == 3, f"deltas are {tuple(deltas.shape)}, not [3, deltas]"
    assert_rows("deltas", deltas, num_deltas)
    assert_rows("table", table, table.shape[1])
    _apply_deltas_kernel[(triton.cdiv(num_deltas, _BLOCK),)](
        table, deltas, table.stride(0), deltas.stride(0), num_deltas, BLOCK=_BLOCK, **PINNED_OPTIONS
    )


COMPILED = (
    Compiled(
        name="apply_deltas",
        kernel=_apply_deltas_kernel,
        types=dict.fromkeys(("table_ptr", "deltas_ptr"), "*i32")
        | dict.fromkeys(("table_stride", "deltas_stride", "num_deltas"), "i32"),
        constexprs={"BLOCK": _BLOCK},
    ),
)
